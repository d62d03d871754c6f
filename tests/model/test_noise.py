"""Noise is Philox, normal, and a function of seed, name and place alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.model import noise
from cutlayer.model.noise import bits, combined, in_groups, normal, philox, pieces, to_normal, uniform

MANY = 2**20


def words(*unsigned: int) -> Tensor:
    """One counter or block, as the bits of signed numbers."""
    return torch.from_numpy(np.array(unsigned, np.uint64).view(np.int64))


ALL = 2**64 - 1
KNOWN = [  # the known answers of Random123 for philox4x64-10: counter, key, block
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (ALL, ALL, ALL, ALL),
        (ALL, ALL),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, int], block: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = words(*counter).split(1)
    assert torch.equal(philox((c0, c1, c2, c3), key)[0], words(*block))


@pytest.mark.parametrize(("start", "end"), [(0, 64), (3, 5), (7, 1001), (2**33 + 5, 2**33 + 70)])
@pytest.mark.parametrize("seed", [0, 12345, 10**11, ALL])
def test_an_accelerators_bits_are_the_cpus(seed: int, start: int, end: int) -> None:
    """The code of an accelerator is run here on the CPU; numpy's generator, which the CPU uses, is another program."""
    first, last = start // 8, -(-end // 8)
    counter_N = torch.arange(first + 1, last + 1)
    zero_N = torch.zeros_like(counter_N)
    block = philox((counter_N, zero_N, zero_N, zero_N), (seed, noise._key_of("a"))).view(torch.int32).view(-1)
    assert torch.equal(block[start - first * 8 :][: end - start], bits(seed, "a", start, end))


FROZEN_BITS = [-621578469, 1044967083, -939724856, -191791692]
FROZEN_NORMAL = ["-0x1.0f30020000000p+0", "0x1.64363a0000000p-1", "-0x1.8d71aa0000000p-1", "-0x1.b2f5ca0000000p+0"]


def test_bits_do_not_change_from_version_to_version() -> None:
    """Runs that were stopped under another version of numpy or of this go on with the same noise."""
    assert bits(7, "base_model.model.a", 5, 9).tolist() == FROZEN_BITS
    assert [float(z).hex() for z in normal([7], "base_model.model.a", 5, 9)[0]] == FROZEN_NORMAL


@pytest.mark.parametrize("cuts", [(0, 100_000), (0, 1, 2, 9, 16, 50_001, 100_000), (0, 65_536, 100_000)])
def test_an_element_is_the_same_however_the_tensor_is_cut(cuts: tuple[int, ...]) -> None:
    parts = [normal([3, 4], "a", start, end) for start, end in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(parts, 1), normal([3, 4], "a", 0, 100_000))


def test_seeds_names_and_places_have_noise_of_their_own() -> None:
    z = normal([3], "a", 0, 1000)[0]
    assert torch.equal(normal([4, 3], "a", 0, 1000)[1], z), "other seeds beside it change nothing"
    assert torch.equal(normal([3], "a", 500, 1000)[0], z[500:])
    for other in (normal([4], "a", 0, 1000), normal([3], "b", 0, 1000), normal([3], "a", 1000, 2000)):
        assert not (other[0] == z).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(
            normal([1], "a", 0, 2**17), torch.cat([normal([1], "a", 0, 99), normal([1], "a", 99, 2**17)], 1)
        )
    finally:
        torch.set_num_threads(before)


def test_what_was_drawn_before_changes_nothing() -> None:
    z = normal([1], "a", 0, 10)
    torch.manual_seed(5)
    torch.randn(3)
    np.random.default_rng(0).random()
    assert torch.equal(normal([1], "a", 0, 10), z)


# ------------------------------------------------------------------ the normal distribution


def inverse(m: Tensor) -> Tensor:
    """z whose upper tail is (m + 1/2) / 2^32, in fp64."""
    return -torch.special.ndtri((m.double() + 0.5) / 2**32)


def test_the_quotient_is_the_inverse_of_the_distribution_function() -> None:
    """At both ends, in between, and alike on both sides."""
    between = bits(1, "m", 0, MANY).bitwise_and(2**31 - 1)
    m = torch.cat([torch.arange(10_000), between, 2**31 - 1 - torch.arange(10_000)]).to(torch.int32)
    above, below = to_normal(m), to_normal(~m)
    assert (above.double() - inverse(m)).abs().max() < 1.6e-5
    torch.testing.assert_close(below, -above, atol=2e-6, rtol=0)
    assert 6.33 < above.max() < 6.34


def test_the_arithmetic_is_rounded_exactly_here() -> None:
    """Square root and quotient as IEEE 754 has them, and no contracted product: else this machine would stand apart."""
    x, y = (uniform(seed, "x", 0, MANY) * 100 + 0.01 for seed in (1, 2))
    assert torch.equal(noise._root(x), x.double().sqrt().float()), "the one way of a CPU, and the other of accelerators"
    assert torch.equal(x / y, (x.double() / y.double()).float())
    assert torch.equal((x * y).add_(0.1), ((x.double() * y.double()).float().double() + np.float32(0.1)).float())


def test_moments_are_those_of_a_normal() -> None:
    z = torch.cat([normal([seed], "a", 0, MANY)[0] for seed in range(4)]).double()
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        moments = z**power
        assert abs(moments.mean() - expected) < 4 * moments.std() / math.sqrt(len(z)), power


def test_its_distribution_is_normal() -> None:
    """Kolmogorov and Smirnov: the largest distance of the distribution functions, below its 1 % point."""
    z = normal([11], "a", 0, MANY)[0].double().sort().values
    steps = torch.arange(1, MANY + 1, dtype=torch.float64) / MANY
    cumulated = torch.special.ndtr(z)
    distance = max((steps - cumulated).max(), (cumulated - steps + 1 / MANY).max())
    assert distance < 1.63 / math.sqrt(MANY)


@pytest.mark.parametrize(("beyond", "probability"), [(3.0, 2.6998e-3), (4.0, 6.3342e-5), (4.5, 6.7953e-6)])
def test_tails_are_as_heavy_as_they_should_be(beyond: float, probability: float) -> None:
    count = sum(int((normal([seed], "t", 0, MANY).abs() > beyond).sum()) for seed in range(4))
    expected = 4 * MANY * probability
    assert abs(count - expected) < 4 * math.sqrt(expected)


def correlation(x: Tensor, y: Tensor) -> float:
    return float((x.double() * y.double()).mean())


@pytest.mark.parametrize("other", [lambda: normal([2], "a", 0, MANY), lambda: normal([1], "b", 0, MANY)])
def test_seeds_and_names_are_independent(other: Callable[[], Tensor]) -> None:
    z, y = normal([1], "a", 0, MANY)[0], other()[0]
    assert abs(correlation(z, y)) < 4 / math.sqrt(MANY)
    assert abs(correlation(z**2 - 1, y**2 - 1)) < 4 * 2 / math.sqrt(MANY)


@pytest.mark.parametrize("lag", [1, 2, 4, 7, 8, 64])
def test_neighbours_are_independent(lag: int) -> None:
    z = normal([1], "a", 0, MANY)[0]
    assert abs(correlation(z[:-lag], z[lag:])) < 4 / math.sqrt(MANY - lag)
    assert abs(correlation(z[:-lag] ** 2 - 1, z[lag:] ** 2 - 1)) < 4 * 2 / math.sqrt(MANY - lag)


def test_one_bit_of_the_seed_changes_half_of_all_bits() -> None:
    for bit in (0, 17, 63):
        changed = (bits(5, "a", 0, 4096) ^ bits(5 ^ (1 << bit), "a", 0, 4096)).numpy().view(np.uint8)
        assert abs(np.unpackbits(changed).mean() - 0.5) < 4 * 0.5 / math.sqrt(4096 * 32)


def test_uniform_numbers_are_uniform() -> None:
    u = uniform(1, "u", 0, MANY)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 64, 0, 1).double()
    expected = MANY / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110, "chi-square with 63 degrees, its 0.02 % point"


# ------------------------------------------------------------------ pieces


def test_pieces_are_the_tensors_and_their_noise_goes_by_place() -> None:
    tensors = {"a": torch.zeros(3, noise.PIECE // 2), "b": torch.zeros(5), "none": torch.zeros(0)}
    for piece in pieces(tensors):
        assert len(piece.values_N) <= noise.PIECE
        piece.values_N.copy_(piece.normal([9])[0])
    for name, tensor in tensors.items():
        assert torch.equal(tensor.flatten(), normal([9], name, 0, tensor.numel())[0] if tensor.numel() else tensor)


def test_a_tensor_that_holds_nothing_has_no_pieces() -> None:
    assert list(pieces({"a": torch.zeros(3, device="meta")})) == []


def test_a_tensor_that_does_not_lie_in_one_piece_is_refused() -> None:
    """A copy would be written to, and the tensor not."""
    with pytest.raises(RuntimeError):
        list(pieces({"a": torch.zeros(3, 2).T}))


def test_terms_are_added_in_their_order_whatever_goes_together() -> None:
    terms = [(seed, 0.1 * seed - 2) for seed in range(40)]
    expected = torch.zeros(4000)
    for seed, factor in terms:
        expected = expected + normal([seed], "a", 6, 4006)[0] * factor
    assert torch.equal(combined(terms, "a", 6, 4006), expected)
    assert torch.equal(combined([], "a", 0, 3), torch.zeros(3))


def test_groups_are_no_larger_than_a_piece() -> None:
    assert [list(group) for group in in_groups(range(5), noise.PIECE // 2)] == [[0, 1], [2, 3], [4]]
    assert [list(group) for group in in_groups(range(2), 10 * noise.PIECE)] == [[0], [1]]
