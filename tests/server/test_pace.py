"""Pace in virtual time: real coordinators, and as many devices as it takes, each coming when its window says."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest

from fedrho.privacy.noise import SystemNoise
from fedrho.protos.messages import Assignment, BeginUpload, Go, RetryWindow, TryLater, Upload
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.pace import EXPECTED, LONGEST_SECONDS, MOST_SEATS, MOST_VISITS_A_SECOND, TO_SPARE, DropOut, Pace
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.store import MemoryStore
from fedrho.server.tasks import Task, parse_task
from tests.server.one_run import new_id

TASK = """
name = "paced"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 1000
population = {population}
[round]
goal = {goal}
deadline_seconds = 600
training_seconds = 150
[privacy]
clip_norm = 1.0
rho = 1e9
delta = 1e-9
[participation]
max_times = 1000
"""
ZEROS = np.zeros(2, dtype=np.int32)


def paced(population: int, goal: int) -> Task:
    return parse_task(TASK.format(population=population, goal=goal), "paced.toml")


@dataclass
class World:
    """`devices` of which each stays away with probability `drop_out` once it has a seat, and else takes 20 to 40 s to train.

    They have come before: at the start each is somewhere in the window that the server's first guess would give it.
    """

    task: Task
    devices: int
    drop_out: float
    now: float = 0.0
    visits: list[float] = field(default_factory=list)
    steps: list[tuple[float, int, bool]] = field(default_factory=list)
    """Of each release: when, its attempt, and whether its first seats sufficed."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.shard = Shard()
        around = Surroundings(SystemNoise(), MemoryStore(), new_id, [LocalShard(self.shard)])
        self.run = open_run(self.task, around, lambda: np.zeros(2, dtype=np.float32), 0.0)
        mean = (self.run.window(0.0).min_seconds + self.run.window(0.0).max_seconds) / 2.0
        away = mean * np.sqrt(0.25 + 2.0 * self.random.random(self.devices))  # who is away for longer is rather found away
        self.first = np.sort(away * self.random.random(self.devices)).tolist()[::-1]
        self.events: list[tuple[float, int, Assignment | None]] = []
        self.order = itertools.count()

    def until(self, steps: int, longest: float = 1e6) -> None:
        """Lets devices come, and time pass second by second, until so many steps were released."""
        while len(self.steps) < steps:
            event = heapq.heappop(self.events) if self.comes_back_first() else (self.first.pop(), 0, None)
            while self.now + 1.0 < event[0]:
                self.pass_to(self.now + 1.0)
            self.pass_to(event[0])
            self.visit() if event[2] is None else self.upload(event[2])
            assert self.now < longest, f"{len(self.steps)} steps in {self.now:.0f} s"

    def comes_back_first(self) -> bool:
        return bool(self.events) and (not self.first or self.events[0][0] < self.first[-1])

    def pass_to(self, now: float) -> None:
        self.now = now
        self.run.tick(now)
        if self.run.release_due:
            round_ = self.run.round
            lapsed = any(not seat.held and seat.heard_at is None for seat in round_.sessions.values())
            self.steps.append((now, round_.attempt, not lapsed))
            self.run.release(now)

    def visit(self) -> None:
        self.visits.append(self.now)
        answer = self.run.offer(new_id(), b"", self.now)
        if isinstance(answer, TryLater):
            self.come_back(answer.retry)
        elif self.random.random() < self.drop_out:
            self.come_back(self.run.window(self.now))
        else:
            self.later(self.random.uniform(20.0, 40.0), answer)

    def upload(self, seat: Assignment) -> None:
        begin = self.shard.begin_upload(BeginUpload(seat.session, seat.ticket), self.now)
        if begin.answer is Go.WAIT:
            return self.later(begin.seconds, seat)
        if begin.answer is Go.GO:
            self.shard.upload(Upload(seat.session, ZEROS), self.now)
        self.come_back(self.run.window(self.now))

    def come_back(self, window: RetryWindow) -> None:
        self.later(self.random.uniform(window.min_seconds, window.max_seconds), None)

    def later(self, seconds: float, seat: Assignment | None) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), seat))

    def after(self, warm_up: int) -> tuple[float, float]:
        """Seconds a step and visits a step, from a step on."""
        start, end = self.steps[warm_up][0], self.steps[-1][0]
        number = len(self.steps) - warm_up - 1
        return (end - start) / number, sum(start <= at < end for at in self.visits) / number


def share_filled_at_once(world: World, warm_up: int) -> float:
    """Of the steps: those that needed neither a second attempt nor a seat that somebody had left empty."""
    return float(np.mean([attempt == 1 and sufficed for _, attempt, sufficed in world.steps[warm_up:]]))


@pytest.mark.slow
def test_of_a_million_devices_about_as_many_come_in_a_step_as_it_has_seats_and_some_to_spare() -> None:
    world = World(paced(1_000_000, 400), 1_000_000, 0.2)
    world.until(35)
    seconds, visits = world.after(15)
    assert 0.7 < visits / (world.run.pace.seats * TO_SPARE) < 1.4
    assert max(np.bincount(np.array(world.visits, dtype=int))) < 4 * visits / seconds
    assert world.run.pace.population == pytest.approx(1_000_000, rel=0.15)
    assert share_filled_at_once(world, 5) >= 0.95


@pytest.mark.parametrize(("guessed", "devices"), [(1_000_000, 200_000), (200_000, 1_000_000)])
def test_a_wrong_guess_of_how_many_devices_there_are_is_corrected(guessed: int, devices: int) -> None:
    world = World(paced(guessed, 100), devices, 0.2)
    world.until(60)
    assert world.run.pace.population == pytest.approx(devices, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("drop_out", [0.2, 0.5])
def test_the_drop_out_is_learned_and_then_the_seats_suffice(drop_out: float) -> None:
    """The standard deviation of one attempt's share is 4 %, of the average over attempts a third of that."""
    world = World(paced(1_000_000, 100), 1_000_000, drop_out)
    world.until(80)
    assert world.run.drop_out.rate == pytest.approx(drop_out, abs=0.06)
    assert share_filled_at_once(world, 20) >= 0.95


@pytest.mark.parametrize(("goal", "drop_out"), [(20, 0.1), (40, 0.0), (25, 0.3)])
def test_fifty_devices_are_gathered_so_that_rounds_fill(goal: int, drop_out: float) -> None:
    """A step of devices that are all there takes a training, at most 40 s; the server's first guess is 300 s."""
    world = World(paced(50, goal), 50, drop_out)
    world.until(80)
    assert share_filled_at_once(world, 20) >= 0.95
    assert world.after(20)[0] < 90.0


# -- the parts


@pytest.mark.parametrize("goal", [1, 10, 1000])
def test_seats_hold_the_goal_and_the_drop_outs_and_have_a_limit(goal: int) -> None:
    seats = [DropOut(rate).seats(goal) for rate in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)]
    assert seats == sorted(seats)
    assert seats[0] == goal
    assert seats[-1] == goal * MOST_SEATS
    assert all(number * (1.0 - rate) >= goal for number, rate in zip(seats, (0.0, 0.1, 0.3, 0.6), strict=False))


def test_what_a_task_file_asks_for_stays_whatever_is_observed() -> None:
    fixed = DropOut.of_task(1.5)
    assert fixed.seats(10) == fixed.observed(0, 1000).seats(10) == 15
    assert DropOut.of_task(None).rate == pytest.approx(1.0 - 1.0 / EXPECTED)


def test_few_devices_say_little_and_none_let_the_rate_fade() -> None:
    before = DropOut(0.2)
    moved = [before.observed(0, dropped).rate - 0.2 for dropped in (1, 5, 10, 100)]
    assert moved == sorted(moved)
    assert moved[0] == pytest.approx(moved[2] / 10)
    assert moved[2] == pytest.approx(moved[3])
    assert 0.19 < before.observed(0, 0).rate < 0.2


@pytest.mark.parametrize("population", [1, 50, 10**4, 10**6, 10**9])
@pytest.mark.parametrize("opens_in", [-1e9, 0.0, 30.0, 1e9])
def test_a_window_is_never_too_soon_nor_beyond_a_day_or_two(population: int, opens_in: float) -> None:
    window = Pace(population, 60.0, 130).window(opens_in)
    assert 0.0 < window.min_seconds < window.max_seconds <= 1.5 * LONGEST_SECONDS


def test_a_crowd_is_spread_so_wide_that_the_server_can_answer_it() -> None:
    window = Pace(10**6, 0.1, 100_000).window(0.0)
    assert 10**6 / ((window.min_seconds + window.max_seconds) / 2.0) <= MOST_VISITS_A_SECOND


def test_one_night_without_devices_does_not_make_the_next_steps_slow() -> None:
    assert Pace(1000, 60.0, 130).stepped(8 * 3600.0).step_seconds <= 1.25 * 60.0


@pytest.mark.parametrize("flood", [20, 200])
def test_a_flood_of_strangers_does_not_send_the_others_away_for_days(flood: int) -> None:
    """Five minutes of check-ins by strangers who ignore every window; forty devices were expected, and come as they are told."""
    around = Surroundings(SystemNoise(), MemoryStore(), new_id, [LocalShard(Shard())])
    run = open_run(paced(40, 10), around, lambda: np.zeros(2, dtype=np.float32), 0.0)
    for number in range(300 * flood):
        run.offer(new_id(), b"", number / flood)
    assert run.pace.population <= 4 * 40
    assert run.window(300.0).max_seconds <= 4 * 1.5 * run.pace.step_seconds * 40 / (10 * TO_SPARE)


def test_where_everybody_finds_a_seat_a_guess_that_was_too_high_fades() -> None:
    pace = Pace(1e6, 1.0, 10, expected=1e6)
    for number in range(2000):
        pace = pace.visited(number / 30.0)
    assert pace.population < 100
