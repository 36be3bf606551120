"""Pictures of who does what: federated learning, a round, clipping, participation, one label, trust."""

from __future__ import annotations

import math

from svg import BLUE, CARD, GREEN, GREY, INK, ORANGE, PALE, PURPLE, WIDTH, Picture

MIDDLE = WIDTH / 2


def learning() -> str:
    picture = Picture(430, "Devices train on data that stays with them; the server sums, adds noise, and publishes weights")
    for place, name in enumerate(("device 1", "device 2", "device 10,000")):
        left = 20 + 180 * place
        picture.box((left, 20), (160, 112), fill="#e8f1f8", edge=BLUE)
        picture.words((left + 80, 44), name, bold=True)
        picture.box((left + 20, 58), (120, 28), fill=CARD, edge=GREY)
        picture.words((left + 80, 77), "its data, stays", size=14)
        picture.words((left + 80, 110), "trains, clips", size=14)
        picture.line((left + 60, 132), (200 + 56 * place, 222), stroke=BLUE, width=2, arrow=True)
        picture.line((236 + 56 * place, 222), (left + 104, 134), stroke=GREEN, width=2, dashed=True, arrow=True)
    picture.words((12, 190), "clipped", "update", size=14, fill=BLUE, anchor="start")
    picture.words((548, 190), "current", "weights", size=14, fill=GREEN, anchor="end")
    picture.box((110, 222), (340, 118), fill="#fbeee4", edge=ORANGE)
    picture.words((MIDDLE, 246), "server", bold=True)
    for place, (name, detail) in enumerate((("check, add", "exact sum"), ("charge", "the budget"), ("add noise", "once"))):
        left = 124 + 108 * place
        picture.box((left, 260), (96, 64), edge=GREY)
        picture.words((left + 48, 287), name, size=15)
        picture.words((left + 48, 308), detail, size=14, fill=GREY)
        if place:
            picture.line((left - 12, 292), (left, 292), arrow=True)
    picture.line((MIDDLE, 340), (MIDDLE, 372), stroke=GREEN, width=2, arrow=True)
    picture.words(
        (MIDDLE, 392), "weights with noise: the only thing that is published,", "and what devices start from next time", size=14
    )
    return picture.text()


ROUND = (
    ("device", "reads what the population offers, asks its own history", "nothing of its data has left"),
    ("device", "checks in: “I am willing”", "gets a seat, or a time to come back"),
    ("device", "downloads the weights, trains, clips onto the grid", "still nothing of its data has left"),
    ("device", "asks for a reservation, then writes “took part” to disk", "from here on it counts"),
    ("device", "uploads integers", "in the server's memory only"),
    ("server", "checks norm, size, seat, duplicate; adds", "refused: no trace in the sum"),
    ("server", "goal reached: closes the round", "too few by the deadline: sum dropped"),
    ("server", "charges, adds noise, steps: one transaction", "no charge, no release"),
    ("server", "publishes the weights; the next step begins", "only now can anyone see it"),
)


def one_round() -> str:
    picture = Picture(46 + 56 * len(ROUND), "The life of one round, from a device's own decision to the published weights")
    picture.words((30, 30), "who does what", bold=True, anchor="start")
    picture.line((38, 52), (38, 18 + 56 * len(ROUND)), stroke=GREY, width=2)
    for place, (who, what, note) in enumerate(ROUND):
        top = 66 + 56 * place
        colour = BLUE if who == "device" else ORANGE
        picture.dot((38, top - 4), 12, colour)
        picture.words((38, top + 1), str(place + 1), size=14, fill=CARD, bold=True)
        picture.words((64, top - 4), what, anchor="start")
        picture.words((64, top + 15), f"{who}: {note}", size=14, fill=colour, anchor="start")
    return picture.text()


def clipping() -> str:
    picture = Picture(340, "Updates longer than the clip norm are scaled to it; shorter ones stay as they are")
    centre, radius = (200.0, 170.0), 92.0
    picture.dot(centre, radius, "#e8f1f8", BLUE)
    for angle, length in ((20, 1.65), (80, 0.6), (135, 1.5), (205, 0.8), (300, 1.4)):
        x, y = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
        whole = (centre[0] + radius * length * x, centre[1] + radius * length * y)
        kept = (centre[0] + radius * min(length, 1.0) * x, centre[1] + radius * min(length, 1.0) * y)
        if length > 1:
            picture.line(centre, whole, stroke=GREY, dashed=True)
            picture.dot(whole, 4, GREY)
        picture.line(centre, kept, stroke=BLUE, width=2.5, arrow=True)
    picture.line((centre[0], centre[1]), (centre[0], centre[1] + radius), stroke=ORANGE, width=2)
    picture.words((centre[0] + 8, centre[1] + 62), "C", fill=ORANGE, anchor="start", bold=True)
    legend = (
        (BLUE, False, "what is sent: at most C long"),
        (GREY, True, "what was trained, if longer"),
        (ORANGE, False, "C, the clip norm"),
    )
    for place, (colour, dashed, name) in enumerate(legend):
        top = 60 + 34 * place
        picture.line((352, top), (376, top), stroke=colour, width=2.5, dashed=dashed)
        picture.words((352, top + 18), name, size=14, anchor="start")
    picture.words(
        (MIDDLE, 312),
        "One device moves the sum by at most C, whatever it holds",
        "and whatever it does to its training.",
        size=14,
    )
    return picture.text()


def participation() -> str:
    picture = Picture(226, "A device with at most 3 participations, 4 or more steps apart")
    picture.words((20, 30), "at most 3 times, steps at least 4 apart", bold=True, anchor="start")
    came = {2: "took part", 6: "took part", 11: "took part"}
    refused = {4: "too close", 13: "3 already"}
    for step in range(1, 15):
        left = 14 + 38 * (step - 1)
        fill = "#e8f1f8" if step in came else PALE if step in refused else CARD
        picture.box((left, 76), (34, 40), fill=fill, edge=BLUE if step in came else ORANGE if step in refused else GREY)
        picture.words((left + 17, 101), str(step), bold=step in came)
        if step in refused:
            picture.line((left + 6, 82), (left + 28, 110), stroke=ORANGE, width=2)
        said = came.get(step) or refused.get(step)
        if said:
            colour, top = (BLUE, 66) if step in came else (ORANGE, 138)
            picture.words((min(left + 17, 508), top), said, size=14, fill=colour)
    picture.words((14, 170), "step", size=14, fill=GREY, anchor="start")
    picture.words(
        (14, 192),
        "The device decides this from its own history, before a byte leaves.",
        "The price was computed for exactly this promise.",
        size=14,
        anchor="start",
    )
    return picture.text()


def label() -> str:
    """Plain randomized response over four classes at epsilon 1: the true label with e / (e + 3)."""
    picture = Picture(386, "One label is answered once by randomized response; models learn from the answer")
    keep = math.e / (math.e + 3.0)
    other = 1.0 / (math.e + 3.0)
    picture.box((20, 24), (150, 112), fill="#e8f1f8", edge=BLUE)
    picture.words((95, 48), "one record", bold=True)
    picture.words((95, 78), "features: public", size=14)
    picture.words((95, 104), "label: mild", size=14)
    picture.words((95, 124), "never read again", size=14, fill=GREY)
    picture.line((170, 80), (206, 80), width=2, arrow=True)
    picture.words((380, 36), "the answer, drawn once, at epsilon 1", size=14)
    for place, (name, chance) in enumerate((("none", other), ("mild", keep), ("severe", other), ("fatal", other))):
        left, height = 226 + 80 * place, 150 * chance
        true = name == "mild"
        picture.box((left, 136 - height), (60, height), fill=BLUE if true else PALE, edge=INK)
        picture.words((left + 30, 128 - height), f"{100 * chance:.1f} %", size=14)
        picture.words((left + 30, 156), name, size=14, bold=true)
    picture.words(
        (380, 182), "no answer is more than e = 2.72 times as likely", "under one label as under another", size=14, fill=GREY
    )
    picture.line((380, 212), (380, 238), width=2, arrow=True)
    picture.box((206, 238), (334, 56), fill="#e6f2ee", edge=GREEN)
    picture.words((373, 262), "training, for as many epochs as it takes,", "on features and answers", size=14)
    picture.line((206, 266), (176, 266), width=2, arrow=True)
    picture.words((95, 262), "model, metrics:", "cost nothing more", size=14)
    picture.words(
        (MIDDLE, 330),
        "Asking a second time would cost epsilon again.",
        "Features are not protected: they are taken for public.",
        size=14,
    )
    return picture.text()


def trust() -> str:
    picture = Picture(500, "Who sees what: the device, the server's memory, the network, and the world")
    picture.box((16, 20), (528, 108), fill="#e8f1f8", edge=BLUE)
    picture.words((30, 44), "the device (trusted by its owner)", bold=True, anchor="start")
    picture.words((30, 68), "examples, labels, local weights", "its history; its owner's limits", size=14, anchor="start")
    picture.words((530, 68), "decides whether, how often,", "and under which terms", size=14, fill=BLUE, anchor="end")
    picture.line((150, 128), (150, 196), stroke=BLUE, width=2.5, arrow=True)
    picture.words(
        (164, 152),
        "a clipped update, as integers, inside TLS;",
        "who came, and when, is visible outside it",
        size=14,
        anchor="start",
    )
    picture.box((16, 196), (528, 132), fill="#fbeee4", edge=ORANGE)
    picture.words((30, 220), "server and shards (trusted: there is no secure aggregation)", bold=True, anchor="start")
    picture.words(
        (30, 246), "memory: single clipped updates until added,", "sums until released or dropped", size=14, anchor="start"
    )
    picture.words(
        (30, 294),
        "disk: weights, charges, seeds of noise,",
        "keyed hashes of tags; never an update or a sum",
        size=14,
        anchor="start",
    )
    picture.line((150, 328), (150, 392), stroke=GREEN, width=2.5, arrow=True)
    picture.words(
        (164, 352),
        "the gate: charge, noise, step, one transaction;",
        "nothing else made of updates goes through",
        size=14,
        fill=GREEN,
        anchor="start",
    )
    picture.box((16, 392), (528, 86), fill=CARD, edge=PURPLE, dashed=True)
    picture.words((30, 416), "the world (assumed hostile, and to know everything else)", bold=True, anchor="start")
    picture.words(
        (30, 442),
        "all published weights, the task and its terms, the noise mechanism:",
        "here the privacy statement holds",
        size=14,
        anchor="start",
    )
    return picture.text()
