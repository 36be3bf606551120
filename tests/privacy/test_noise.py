"""Noise is Gaussian, independent, the cipher's, and the same again from its seed.

Fixed seeds make the statistics repeatable. `Z` standard errors are allowed: under the right distribution a fresh seed exceeds
them with probability 2e-9 a comparison (two-sided normal tail).
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from randomgen import AESCounter
from scipy import stats

from fedrho.privacy.noise import (
    SEED_BYTES,
    SEGMENT,
    STRETCH,
    NoiseMismatch,
    ReplayedNoise,
    SystemNoise,
    _generator,
    expand,
)

TOP = Path(__file__).parents[2]
Z = 6.0
SEED = bytes(range(SEED_BYTES))
GOLDEN = (
    [203057, 1006538, 762029, -1185784],
    [74142, 765359, 693258, -1516241],
    [355285, -2286525, -1053579, -2011705],
)
GOLDEN_DIGEST = "3b25b3e44c5afdaa212c1c8f5dd63e4d57c7c75aaf1f1a1757370c59a29bc217"


def seed(number: int) -> bytes:
    return hashlib.sha256(b"fedrho test %d" % number).digest()


def aes128_block(key: bytes, block: bytes) -> bytes:
    """FIPS-197 as written there: a state of 16 bytes, column by column, in GF(2**8) modulo x**8 + x**4 + x**3 + x + 1."""
    keys = expanded_key(key)
    state = bytes(a ^ b for a, b in zip(block, keys[0], strict=True))
    for number in range(1, 11):
        state = bytes(SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16))  # SubBytes and ShiftRows
        if number < 10:
            state = b"".join(mixed_column(state[i : i + 4]) for i in range(0, 16, 4))
        state = bytes(a ^ b for a, b in zip(state, keys[number], strict=True))
    return state


def times_x(a: int) -> int:
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def sbox() -> bytes:
    """Section 5.1.1: the inverse in the field, then an affine map; inverses are found as powers of the generator x + 1."""
    powers = [1]
    while len(powers) < 255:
        powers.append(times_x(powers[-1]) ^ powers[-1])
    inverse = {a: powers[-i % 255] for i, a in enumerate(powers)} | {0: 0}
    turned = [[(inverse[a] << turn | inverse[a] >> 8 - turn) & 0xFF for turn in range(5)] for a in range(256)]
    return bytes(t[0] ^ t[1] ^ t[2] ^ t[3] ^ t[4] ^ 0x63 for t in turned)


SBOX = sbox()


def mixed_column(column: bytes) -> bytes:
    doubled = [times_x(a) for a in column]
    return bytes(
        doubled[i] ^ doubled[(i + 1) % 4] ^ column[(i + 1) % 4] ^ column[(i + 2) % 4] ^ column[(i + 3) % 4] for i in range(4)
    )


def expanded_key(key: bytes) -> list[bytes]:
    """Section 5.2: eleven round keys of four words."""
    words, constant = [key[i : i + 4] for i in range(0, 16, 4)], 1
    while len(words) < 44:
        last = words[-1]
        if len(words) % 4 == 0:
            last = bytes(SBOX[a] for a in last[1:] + last[:1])
            last = bytes([last[0] ^ constant]) + last[1:]
            constant = times_x(constant)
        words.append(bytes(a ^ b for a, b in zip(words[-4], last, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, 44, 4)]


def counter_mode(key: bytes, start: int, blocks: int) -> bytes:
    """The cipher of start, start + 1, ... modulo 2**128, each as 16 bytes, the lowest first."""
    return b"".join(aes128_block(key, ((start + i) % 2**128).to_bytes(16, "little")) for i in range(blocks))


@pytest.mark.parametrize(
    ("key", "block", "cipher"),
    [
        (bytes(range(16)).hex(), "00" * 16, "c6a13b37878f5b826f4f8162a1c8d879"),
        ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734", "3925841d02dc09fbdc118597196a0b32"),
        ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
    ],
    ids=["zeros", "appendix B", "appendix C.1"],
)
def test_the_plain_cipher_gives_the_blocks_printed_in_fips_197(key: str, block: str, cipher: str) -> None:
    assert aes128_block(bytes.fromhex(key), bytes.fromhex(block)).hex() == cipher


@pytest.mark.parametrize("hardware", [True, False])
@pytest.mark.parametrize("start", [0, 2**64 - 5, 2**128 - 5, int.from_bytes(SEED[16:], "little")])
def test_the_generator_is_aes128_in_counter_mode_that_wraps(start: int, hardware: bool) -> None:
    """With the instructions of the processor and without; 40 blocks are more than what it makes at a time."""
    generator = AESCounter(key=int.from_bytes(SEED[:16], "little"), counter=start)
    try:
        generator.use_aesni = hardware
    except ValueError:
        pytest.skip("this processor has no AES instructions to compare")
    stream = generator.random_raw(2 * 40).astype("<u8").tobytes()
    assert stream == counter_mode(SEED[:16], start, 40)


@pytest.mark.parametrize("segment", [0, 1, 7, 2**63])
@pytest.mark.parametrize("origin", [SEED, bytes(16) + b"\xff" * 16, b"\xff" * 15 + bytes(16) + b"\x80"], ids=["a", "b", "c"])
def test_a_segment_has_the_key_and_the_stretch_of_the_counter_that_the_seed_says(origin: bytes, segment: int) -> None:
    start = int.from_bytes(origin[16:], "little") + segment * 2**64
    stream = _generator(origin, segment).bit_generator.random_raw(2 * 5).astype("<u8").tobytes()
    assert stream == counter_mode(origin[:16], start, 5)


def test_noise_of_a_known_seed_is_what_it_has_always_been() -> None:
    """Two whole segments and a part of one."""
    vector, node = expand("a", SEED, 2 * SEGMENT + 5, 1e6)
    assert vector[:4].tolist() == GOLDEN[0]
    assert vector[SEGMENT : SEGMENT + 4].tolist() == GOLDEN[1]
    assert vector[-4:].tolist() == GOLDEN[2]
    assert node.digest.hex() == GOLDEN_DIGEST


@pytest.mark.parametrize("size", [0, 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5])
@pytest.mark.parametrize(
    ("stddev", "width"), [(0.0, "<i4"), (1e6, "<i4"), (2.0**27 - 1, "<i4"), (2.0**27, "<i8"), (2.0**40, "<i8")]
)
def test_the_digest_is_that_of_the_digests_of_the_segments(size: int, stddev: float, width: str) -> None:
    """In 32 bits where 16 standard deviations fit into them, else in 64."""
    vector, node = expand("a", SEED, size, stddev)
    parts = [vector[start : start + SEGMENT].astype(width).tobytes() for start in range(0, size, SEGMENT)]
    whole = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    assert node.digest == whole


def test_each_segment_grows_alone_from_its_stretch() -> None:
    vector, _ = expand("a", SEED, 3 * SEGMENT, 1e6)
    for segment in range(3):
        normals = _generator(SEED, segment).standard_normal(SEGMENT)
        assert np.array_equal(vector[segment * SEGMENT : (segment + 1) * SEGMENT], np.rint(normals * 1e6))


def test_a_longer_vector_begins_with_the_shorter_one() -> None:
    long, _ = expand("a", SEED, 3 * SEGMENT, 1e6)
    for size in (1, 100, SEGMENT, SEGMENT + 1):
        assert np.array_equal(expand("a", SEED, size, 1e6)[0], long[:size])


@pytest.mark.parametrize("processors", [1, 3, 16, None])
def test_the_number_of_processors_changes_nothing(processors: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expand("a", SEED, 5 * SEGMENT + 3, 1e6)
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    vector, node = expand("a", SEED, 5 * SEGMENT + 3, 1e6)
    assert vector.tobytes() == expected[0].tobytes()
    assert node == expected[1]


def test_no_segment_uses_up_its_stretch_of_the_counter() -> None:
    """A normal takes hardly more than one word, half a block; and 2**64 stretches are more than any vector has segments."""
    generator = _generator(SEED, 0)
    generator.standard_normal(SEGMENT)
    following = generator.bit_generator.random_raw(2).astype("<u8").tobytes()
    assert following in counter_mode(SEED[:16], int.from_bytes(SEED[16:], "little") + SEGMENT // 2, 1200)
    assert STRETCH > 1000 * SEGMENT


def test_two_draws_of_one_name_differ() -> None:
    source = SystemNoise()
    first, second = (source.draw("a", 1000, 1e6) for _ in range(2))
    assert first[1].seed != second[1].seed
    assert np.count_nonzero(first[0] == second[0]) < 10  # each pair is equal with probability 3e-7


def test_replay_gives_the_same_bytes() -> None:
    drawn = [SystemNoise().draw(f"n{i}", 50 + i, 1e5) for i in range(5)]
    replayed = ReplayedNoise(node for _, node in drawn)
    for vector, node in reversed(drawn):
        again, same = replayed.draw(node.name, vector.size, 1e5)
        assert again.tobytes() == vector.tobytes()
        assert same == node


def test_what_does_not_reproduce_is_refused() -> None:
    _, node = SystemNoise().draw("a", 10, 1e5)
    for wrong in (
        dataclasses.replace(node, digest=bytes(32)),
        dataclasses.replace(node, seed=bytes([node.seed[0] ^ 1]) + node.seed[1:]),
        dataclasses.replace(node, name="b"),
    ):
        with pytest.raises(NoiseMismatch, match="noise node a"):
            ReplayedNoise([wrong]).draw("a", 10, 1e5)
    for size, stddev in ((11, 1e5), (10, 1.1e5)):
        with pytest.raises(NoiseMismatch):
            ReplayedNoise([node]).draw("a", size, stddev)


@pytest.mark.parametrize("length", [0, 16, SEED_BYTES - 1, SEED_BYTES + 1])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        expand("a", bytes(length), 10, 1.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_noise_that_an_int64_cannot_hold_is_refused() -> None:
    """Otherwise every coordinate becomes the same number, and the sum can be read off."""
    with pytest.raises(ValueError, match="stddev"):
        expand("a", SEED, 1000, 1e19)


def test_a_seed_does_not_show_in_logs() -> None:
    _, node = SystemNoise().draw("a", 10, 1e5)
    assert node.seed.hex() not in repr(node)
    assert repr(node.seed) not in repr(node)


def test_every_bit_of_the_seed_counts() -> None:
    number = int.from_bytes(SEED, "little")
    streams = {expand("a", (number ^ 1 << bit).to_bytes(SEED_BYTES, "little"), 4, 1e9)[0].tobytes() for bit in range(256)}
    assert len(streams) == 256


@pytest.mark.parametrize("stddev", [1.0, 7.3e6, 2.0**34])
def test_moments_are_those_of_the_gaussian(stddev: float) -> None:
    """Standard errors of n standard normals: mean 1, variance sqrt(2), third moment sqrt(15), fourth sqrt(96); over sqrt(n)."""
    n = 1_000_000
    scaled = expand("a", seed(1), n, stddev)[0] / stddev
    rounding = 1 / (12 * stddev**2)  # Sheppard: the rounding adds its own variance
    assert abs(scaled.mean()) < Z / math.sqrt(n)
    assert abs(scaled.var() - 1 - rounding) < Z * math.sqrt(2 / n) * (1 + rounding)
    assert abs((scaled**3).mean()) < Z * math.sqrt(15 / n) * (1 + rounding) ** 1.5
    assert abs((scaled**4).mean() - 3 * (1 + rounding) ** 2) < Z * math.sqrt(96 / n) * (1 + rounding) ** 2 + rounding


def test_small_noise_has_the_probabilities_of_the_rounded_gaussian() -> None:
    n, stddev, edge = 1_000_000, 2.5, 9
    values = np.clip(expand("a", seed(2), n, stddev)[0], -edge, edge)
    cuts = np.concatenate([[-np.inf], np.arange(-edge, edge) + 0.5, [np.inf]]) / stddev
    observed = [np.count_nonzero(values == value) for value in range(-edge, edge + 1)]
    assert stats.chisquare(observed, n * np.diff(stats.norm.cdf(cuts))).pvalue > 1e-6


def test_large_noise_follows_the_gaussian_into_its_tails() -> None:
    n, stddev = 1_000_000, 7.0 * 2**20
    scaled = expand("a", seed(3), n, stddev)[0] / stddev
    assert stats.kstest(scaled, "norm").pvalue > 1e-6
    for threshold in (3.0, 3.7, 4.3):
        expected = stats.norm.sf(threshold)
        for beyond in (np.count_nonzero(scaled > threshold), np.count_nonzero(scaled < -threshold)):
            assert stats.binomtest(beyond, n, expected).pvalue > 1e-8


def test_nodes_are_independent_of_each_other() -> None:
    """Correlations of d independent normals have standard error 1 / sqrt(d)."""
    d, nodes = 20_000, 40
    streams = np.array([expand("a", seed(100 + i), d, 1e6)[0] for i in range(nodes)])
    off_diagonal = np.corrcoef(streams) - np.eye(nodes)
    assert np.abs(off_diagonal).max() < Z / math.sqrt(d)


def test_coordinates_are_independent_of_each_other() -> None:
    """Neighbours, and coordinates at the distance of a cipher block (2 words of 64 bits), of its buffer (8), of a segment."""
    scaled = expand("a", seed(4), 8 * SEGMENT, 1e6)[0] / 1e6
    for lag in (*range(1, 20), 32, 64, 128, 256, 512, 1024, 4096, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT):
        for view in (scaled, np.abs(scaled) - np.abs(scaled).mean()):
            products = view[:-lag] * view[lag:]
            assert abs(products.mean()) < Z * products.std() / math.sqrt(products.size), lag


def test_segments_are_independent_of_each_other() -> None:
    segments = expand("a", seed(5), 20 * SEGMENT, 1e6)[0].reshape(20, SEGMENT)
    assert np.abs(np.corrcoef(segments) - np.eye(20)).max() < Z / math.sqrt(SEGMENT)


def test_noise_comes_from_nowhere_but_the_one_generator() -> None:
    """In privacy/ and server/ nobody imports another source of randomness, and numpy.random serves AES in counter mode alone."""
    constructors, ciphers = set(), set()
    for path in (*(TOP / "privacy").glob("*.py"), *(TOP / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                modules = names | {getattr(node, "module", None)}
                assert not modules & {"random", "secrets", "numpy.random", "uuid"}, path
                assert path.is_relative_to(TOP / "server") or not modules & {"time", "datetime"}, path
                if "randomgen" in modules:
                    ciphers.add((path.name, *names))
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("np.random.", "numpy.random.")):
                constructors.add((path.name, ast.unparse(node)))
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("np.random"):
                assert ast.unparse(node).startswith("np.random.Generator(AESCounter(key="), path
    assert constructors == {("noise.py", "np.random.Generator")}
    assert ciphers == {("noise.py", "AESCounter")}
