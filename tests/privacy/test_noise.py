"""Noise is Gaussian, independent, the cipher's, and the same again from its seed.

Fixed seeds make the statistics repeatable. `Z` standard errors are allowed: under the right distribution a fresh seed exceeds
them with probability 2e-9 a comparison (two-sided normal tail).
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from randomgen import ChaCha
from scipy import stats

from fedrho.privacy.noise import SEED_BYTES, NoiseMismatch, NoiseNode, ReplayedNoise, SystemNoise, expand

TOP = Path(__file__).parents[2]
Z = 6.0
SEED = bytes(range(SEED_BYTES))
GOLDEN = [-329170, -471771, -622341, 1078918, -322907, 153060]


def seed(number: int) -> bytes:
    return hashlib.sha256(b"fedrho test %d" % number).digest()


def chacha20_block(key: bytes, tail: tuple[int, int, int, int]) -> bytes:
    """RFC 8439, section 2.3, word by word; `tail` is words 12 to 15, the counter and the nonce."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), *tail]
    words = start.copy()

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            words[x] = (words[x] + words[y]) & 0xFFFFFFFF
            words[z] ^= words[x]
            words[z] = (words[z] << turn | words[z] >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(words, start, strict=True)))


def test_the_plain_cipher_gives_the_block_printed_in_the_rfc() -> None:
    block = chacha20_block(SEED, (1, 0x09000000, 0x4A000000, 0))
    assert block.hex().startswith("10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c06803" + "0422aa9ac3d46c4e")


@pytest.mark.parametrize("simd", [True, False])
def test_the_generator_is_chacha20_with_the_seed_as_key_and_a_nonce_of_zero(simd: bool) -> None:
    generator = ChaCha(key=int.from_bytes(SEED, "little"), counter=0, rounds=20)
    try:
        generator.use_simd = simd
    except ValueError:
        pytest.skip("this processor has no vector instructions to compare")
    stream = generator.random_raw(8 * 40).astype("<u8").tobytes()
    assert stream == b"".join(chacha20_block(SEED, (counter, 0, 0, 0)) for counter in range(40))


def test_noise_of_a_known_seed_is_what_it_has_always_been() -> None:
    vector, node = expand("a", SEED, 6, 1e6)
    assert vector.tolist() == GOLDEN
    assert node == NoiseNode("a", SEED, hashlib.sha256(struct.pack("<6q", *GOLDEN)).digest())


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
    """Neighbours, and coordinates at the distance of a cipher block (8 words of 64 bits) or of its vectorised buffer."""
    scaled = expand("a", seed(4), 400_000, 1e6)[0] / 1e6
    for lag in (*range(1, 20), 32, 64, 128, 256, 512, 1024, 4096):
        for view in (scaled, np.abs(scaled) - np.abs(scaled).mean()):
            products = view[:-lag] * view[lag:]
            assert abs(products.mean()) < Z * products.std() / math.sqrt(products.size), lag


def test_noise_comes_from_nowhere_but_the_one_generator() -> None:
    """In privacy/ and server/ nobody imports another source of randomness, and numpy.random serves ChaCha alone."""
    constructors = set()
    for path in (*(TOP / "privacy").glob("*.py"), *(TOP / "server").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"random", "secrets", "numpy.random", "uuid"}, path
                assert path.parent.name == "server" or not modules & {"time", "datetime"}, path
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("np.random.", "numpy.random.")):
                constructors.add((path.name, ast.unparse(node)))
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("np.random"):
                assert ast.unparse(node).startswith("np.random.Generator(ChaCha(key="), path
    assert constructors == {("noise.py", "np.random.Generator")}
