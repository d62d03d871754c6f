"""Codecs: what comes back is near what went in, by each codec's own bound; sizes by shape alone; damage is refused."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutlayer.errors import ConfigError, MalformedMessage
from cutlayer.wire.codecs import (
    NONE,
    AsItIs,
    Bf16,
    Codec,
    Int8,
    NotFinite,
    SomeNumbers,
    Sparse,
    StochasticSteps,
    TopK,
    codec_by_name,
    packed_form,
)
from cutlayer.wire.spelled import BITS

few = settings(max_examples=150, deadline=None, derandomize=True)
many = settings(max_examples=400, deadline=None, derandomize=True)

CODECS: list[Codec] = [
    *(NONE, Bf16(), Int8(), TopK(0.25), TopK(0.25, rows=False), TopK(1.0)),
    *(SomeNumbers(NONE, 0.5, "key"), SomeNumbers(Bf16(), 0.3, "key", on_arrival=True)),
    *(StochasticSteps(2, "key"), StochasticSteps(5, "key"), StochasticSteps(16, "key")),
    *(Sparse(0.3, bits) for bits in BITS),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY, NORMAL = 2.0**-149, 2.0**-126
"""The smallest fp32 above zero, and the smallest of full precision."""


def there_and_back(codec: Codec, tensor: Tensor) -> Tensor:
    return codec.unpack(codec.pack(tensor), tensor.shape, tensor.dtype)


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> Tensor:
    """Finite numbers of all magnitudes, rows of zeros among them, up to 3 dimensions, also not contiguous."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    numbers = st.just(0.0) | st.floats(-2, 2, width=32) | st.floats(-(2.0**15), 2.0**15, width=32)
    numbers |= st.floats(-(2.0**-120), 2.0**-120, width=32)
    row = st.just([0.0] * shape[-1]) | st.lists(numbers, min_size=shape[-1], max_size=shape[-1])
    rows = [draw(row) for _ in range(math.prod(shape[:-1]))]
    tensor = torch.tensor(rows).reshape(shape).to(draw(st.sampled_from(dtypes)))
    return tensor.mT if tensor.ndim >= 2 and draw(st.booleans()) else tensor


# ------------------------------------------------------------------ there and back


@many
@given(tensors(), st.sampled_from(CODECS))
def test_shape_dtype_and_zero_come_back(tensor: Tensor, codec: Codec) -> None:
    back = there_and_back(codec, tensor)
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    assert not back[tensor == 0].any()


@many
@given(tensors(), st.sampled_from(CODECS))
def test_the_size_is_known_without_the_numbers(tensor: Tensor, codec: Codec) -> None:
    packed, form = codec.pack(tensor), packed_form(codec, tuple(tensor.shape), tensor.dtype)
    assert form.is_meta
    assert (packed.shape, packed.dtype, packed.nbytes) == (form.shape, form.dtype, form.nbytes)
    assert codec.unpack(form, tensor.shape, tensor.dtype).shape == tensor.shape, "meta"


@few
@given(tensors())
def test_none_and_all_of_top_k_lose_nothing(tensor: Tensor) -> None:
    assert NONE.pack(tensor) is tensor
    assert torch.equal(there_and_back(TopK(1.0), tensor), tensor)
    assert torch.equal(there_and_back(TopK(1.0, rows=False), tensor), tensor)


@many
@given(tensors([torch.float32]))
def test_bf16_is_the_nearest_of_16_bits(tensor: Tensor) -> None:
    back = there_and_back(Bf16(), tensor)
    assert bool(((back - tensor).abs() <= tensor.abs() / 2**8 + 2.0**-134).all()), "2^-134: half the smallest bf16"
    below, above = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]).unbind()
    assert there_and_back(Bf16(), torch.stack([below, above])).tolist() == [1.0, 1 + 2**-6], "ties go to even"


def test_bf16_of_bf16_is_itself() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(there_and_back(Bf16(), every).view(torch.int16), every.view(torch.int16)), "nan and inf too"


@many
@given(tensors())
def test_int8_is_off_by_half_a_step_at_most(tensor: Tensor) -> None:
    exact, back = tensor.double(), there_and_back(Int8(), tensor).double()
    largest = exact.abs().amax(-1, keepdim=True)
    of_fp32 = largest / 254 * (1 + 1e-5) + 127 * TINY
    of_dtype = 0 if tensor.dtype is torch.float32 else largest * torch.finfo(tensor.dtype).eps + 2.0**-25
    assert bool(((back - exact).abs() <= of_fp32 + of_dtype).all())


@few
@given(tensors([torch.float32]))
def test_int8_is_odd_and_knows_each_row_alone(tensor: Tensor) -> None:
    assert torch.equal(there_and_back(Int8(), -tensor), -there_and_back(Int8(), tensor))
    rows = tensor.reshape(-1, tensor.shape[-1])
    alone = torch.cat([there_and_back(Int8(), row[None]) for row in rows])
    assert torch.equal(there_and_back(Int8(), rows), alone)


def test_int8_by_hand() -> None:
    packed = Int8().pack(torch.tensor([[127.0, -63.5, 0.5, 1.5, -127.0], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert packed.dtype is torch.uint8
    assert packed[:, :5].view(torch.int8).tolist() == [[127, -64, 0, 2, -127], [0, 0, 0, 0, 0]], "ties go to even"
    assert packed[:, 5:].contiguous().view(torch.float32).flatten().tolist() == [1.0, 0.0]


def test_int8_below_what_a_step_can_be() -> None:
    row = torch.tensor([[190 * TINY, -60 * TINY, 0.0], [60 * TINY, -TINY, 0.0]])
    assert not Int8().pack(row)[1].any(), "not even bytes that a step of zero would undo"
    back = there_and_back(Int8(), row)
    assert (back / TINY).tolist() == [[127.0, -60.0, 0.0], [0.0, 0.0, 0.0]]


@many
@given(tensors(), st.floats(0.01, 1.0), st.booleans())
def test_top_k_keeps_the_largest_exactly(tensor: Tensor, fraction: float, rows: bool) -> None:
    back = there_and_back(TopK(fraction, rows), tensor)
    width = tensor.shape[-1] if rows else tensor.numel()
    kept = max(1, round(fraction * width))
    for row, got in zip(tensor.reshape(-1, width).tolist(), back.reshape(-1, width).tolist(), strict=True):
        first = sorted(range(width), key=lambda place: (-abs(row[place]), place))[:kept]
        assert got == [number if place in first else 0.0 for place, number in enumerate(row)]


def test_top_k_by_hand() -> None:
    packed = TopK(0.5).pack(torch.tensor([[1.0, -3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]]))
    words = packed.view(torch.float32)[:, :2], packed.view(torch.int32)[:, 2:]
    assert [part.tolist() for part in words] == [[[-3.0, 3.0], [5.0, 5.0]], [[1, 2], [0, 1]]]


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [(NONE, 6 * 1536), (Bf16(), 6 * 768), (Int8(), 6 * 388), (TopK(0.1), 6 * 38 * 8), (TopK(0.1, rows=False), 230 * 8)],
)
def test_bytes_of_two_by_three_rows_of_384(codec: Codec, nbytes: int) -> None:
    assert packed_form(codec, (2, 3, 384), torch.float32).nbytes == nbytes


# ------------------------------------------------------------------ what cannot be carried


@pytest.mark.parametrize("codec", [Int8(), TopK(0.5), TopK(0.5, rows=False)])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_made_one(codec: Codec, number: float) -> None:
    with pytest.raises(NotFinite, match="expected finite numbers, got 2 of 6 that are not"):
        codec.pack(torch.tensor([[1.0, number, 2.0], [3.0, 4.0, number]]))


@pytest.mark.parametrize("codec", [NONE, Bf16()])
def test_others_carry_it(codec: Codec) -> None:
    back = there_and_back(codec, torch.tensor([math.nan, math.inf, -math.inf]))
    assert str(back.tolist()) == "[nan, inf, -inf]"


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}-{getattr(codec, 'rows', '')}")
def test_another_form_is_refused(codec: Codec) -> None:
    packed = codec.pack(torch.ones(2, 3, 8))
    for wrong in (
        packed[..., :-1],
        packed[:1],
        torch.ones(()),
        packed.to(torch.float64),
        packed.new_zeros(0),
        packed.new_zeros(2**20, 0),
    ):
        with pytest.raises(MalformedMessage, match=r"expected .* of shape .*, got"):
            codec.unpack(wrong, (2, 3, 8), torch.float32)
    with pytest.raises(MalformedMessage):
        codec.unpack(packed, (2**32, 2**14), torch.float32)


@pytest.mark.parametrize("places", [[0, 8], [-1, 3], [3, 3], [3, 2], [-(2**31), 2**31 - 1]])
def test_places_that_are_none_are_refused(places: list[int]) -> None:
    codec = TopK(0.25)
    good = codec.pack(torch.arange(8.0)[None])
    bad = torch.cat([good[..., :8], torch.tensor([places], dtype=torch.int32).view(torch.uint8)], -1)
    with pytest.raises(MalformedMessage, match="ascending places below 8"):
        codec.unpack(bad, (1, 8), torch.float32)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.sampled_from(CODECS), st.integers(0, 2**32))
def test_changed_bytes_are_refused_or_make_another_tensor(codec: Codec, seed: int) -> None:
    dice = random.Random(seed)
    tensor = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    packed = codec.pack(tensor)
    flat = packed.reshape(-1).view(torch.uint8).clone()
    for _ in range(dice.randint(1, 3)):
        flat[dice.randrange(len(flat))] = dice.randrange(256)
    try:
        back = codec.unpack(flat.view(packed.dtype).reshape(packed.shape), tensor.shape, tensor.dtype)
    except MalformedMessage:
        assert isinstance(codec, Sparse | StochasticSteps | TopK)
        return
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["none", "bf16", "int8", "topk:0.1", "topk:1", "topk:1e-05"])
def test_a_codec_goes_by_its_name(name: str) -> None:
    assert codec_by_name(name).name == name
    assert codec_by_name(name) == codec_by_name(name)


def test_top_k_is_by_rows_or_not() -> None:
    assert codec_by_name("topk:0.1", rows=False) == TopK(0.1, rows=False)
    assert isinstance(codec_by_name("none", rows=False), AsItIs)


@pytest.mark.parametrize("name", ["", "fp8", "topk", "topk:", "topk:x", "topk:0", "topk:-1", "topk:2", "topk:nan"])
def test_what_is_no_codec_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected none, bf16, int8 or topk:FRACTION .*, got "):
        codec_by_name(name)


# ------------------------------------------------------------------ few numbers in few bits


@pytest.mark.parametrize("bits", BITS)
def test_sparse_keeps_the_largest_within_a_step(bits: int) -> None:
    tensor = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))
    codec = Sparse(0.25, bits).keyed("a")
    back, exact = there_and_back(codec, tensor), there_and_back(TopK(0.25, rows=False), tensor)
    assert torch.equal(back != 0, (exact != 0) & (back != 0)), "nothing but the largest"
    step = 0.0 if bits == 32 else float(tensor.abs().max()) / (2 ** (bits - 1) - 1)
    assert float((back - exact).abs().max()) <= step * (1 + 1e-5)
    assert len(codec.pack(tensor)) == 8 + -(-16 * bits // 8) + (4 if bits < 32 else 0)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_kept_is_unbiased(bits: int) -> None:
    """The mean over keys is the number, within its deviation: a step has at most a variance of a quarter."""
    tensor, keys = torch.tensor([1.0, -0.63, 0.411, 0.05, 0.0]), 4000
    mean = sum(there_and_back(Sparse(1.0, bits).keyed(str(key)), tensor).double() for key in range(keys)) / keys
    step = 1.0 / (2 ** (bits - 1) - 1)
    assert float((mean - tensor).abs().max()) < 4 * 0.5 * step / keys**0.5


def test_the_draws_are_by_the_key() -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(1))
    one, again, other = (Sparse(1.0, 4).keyed(key).pack(tensor) for key in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert Sparse(1.0, 4, "a") == Sparse(1.0, 4, "b"), "they are one codec to whoever unpacks"


@pytest.mark.parametrize("change", [0, 255])
def test_a_bitmap_that_says_otherwise_is_refused(change: int) -> None:
    packed = Sparse(0.5, 8).pack(torch.arange(1.0, 13.0))
    packed[1] = change
    with pytest.raises(MalformedMessage, match="expected 6 of 12 numbers"):
        Sparse(0.5, 8).unpack(packed, (12,), torch.float32)


def test_sparse_is_for_adapters() -> None:
    assert codec_by_name("sparse:0.1:4", rows=False) == Sparse(0.1, 4)
    assert codec_by_name("sparse:0.1:4", rows=False).name == "sparse:0.1:4"
    for name, rows in (("sparse:0.1:4", True), ("sparse:0.1:5", False), ("sparse:0:4", False), ("sparse:0.1", False)):
        with pytest.raises(ConfigError, match="codec: expected none, bf16, int8"):
            codec_by_name(name, rows=rows)


# ------------------------------------------------------------------ what a method chooses


def test_some_numbers_are_the_same_of_all_rows_and_others_by_another_key() -> None:
    tensor = torch.randn(3, 5, 40)
    back = there_and_back(SomeNumbers(NONE, 0.25, "one"), tensor)
    stay = (back != 0).all(0).all(0)
    assert int(stay.sum()) == 10
    assert torch.equal(back[..., stay], tensor[..., stay] * 4)
    assert not back[..., ~stay].any()
    assert torch.equal(there_and_back(SomeNumbers(NONE, 0.25, "one"), tensor), back)
    assert not torch.equal((there_and_back(SomeNumbers(NONE, 0.25, "two"), tensor) != 0).all(0).all(0), stay)


def test_where_they_are_multiplied() -> None:
    tensor = torch.ones(2, 8)
    leaving, arriving = SomeNumbers(NONE, 0.5, "k"), SomeNumbers(NONE, 0.5, "k", on_arrival=True)
    assert set(leaving.pack(tensor).flatten().tolist()) == {2.0}
    assert set(arriving.pack(tensor).flatten().tolist()) == {1.0}
    assert torch.equal(there_and_back(leaving, tensor), there_and_back(arriving, tensor))


def test_every_number_stays_equally_often_and_so_a_row_keeps_its_mean() -> None:
    counts = torch.zeros(12)
    for key in range(2000):
        counts += there_and_back(SomeNumbers(NONE, 0.25, str(key)), torch.ones(1, 12))[0]
    assert counts.sum() == pytest.approx(12 * 2000)
    assert float((counts / 2000 - 1).abs().max()) < 5 * math.sqrt(3 / 2000)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stochastic_steps_are_unbiased_with_the_stated_variance(bits: int) -> None:
    """Over draws: each number's mean is itself, its variance f (1 - f) of a step's square, at most a quarter of it."""
    tensor, draws = torch.randn(40, generator=torch.Generator().manual_seed(0)), 3000
    step = float(tensor.abs().max()) / (2 ** (bits - 1) - 1)
    found = torch.stack([there_and_back(StochasticSteps(bits, str(key)), tensor) for key in range(draws)]).double()
    error = (found.mean(0) - tensor).abs()
    assert float((error / step).max()) < 5 * math.sqrt(0.25 / draws)
    part = (tensor.double() / step) % 1
    expected = part * (1 - part) * step**2
    torch.testing.assert_close(found.var(0), expected, rtol=0.15, atol=0.01 * step**2)
    total = float((found - tensor.double()).square().sum(1).mean())
    assert total <= 40 * step**2 / 4


@many
@given(tensors([torch.float32]), st.sampled_from([2, 3, 5, 8, 11, 16]))
def test_a_stochastic_step_is_the_one_below_or_above(tensor: Tensor, bits: int) -> None:
    back = there_and_back(StochasticSteps(bits, "key"), tensor).double()
    step = float(tensor.abs().max()) / (2 ** (bits - 1) - 1)
    if step <= NORMAL * (1 - 1e-6):
        assert not back.any()
    elif step >= NORMAL * (1 + 1e-6):
        assert float((back - tensor.double()).abs().max()) <= step * (1 + 1e-6)
        assert float((back / step - (back / step).round()).abs().max()) < 1e-2


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_numbers_take_as_many_bits(bits: int) -> None:
    assert StochasticSteps(bits, "").pack(torch.randn(7, 11)).nbytes == -(-77 * bits // 8) + 4


def test_draws_are_of_the_key() -> None:
    tensor = torch.randn(200)
    one, same, other = (StochasticSteps(3, key).pack(tensor) for key in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one[-4:].equal(other[-4:])


def test_damaged_steps_are_refused() -> None:
    codec = StochasticSteps(8, "")
    packed = codec.pack(torch.randn(6))
    for damaged in (
        torch.cat([torch.full((6,), 255, dtype=torch.uint8), packed[-4:]]),  # one step more than there are
        torch.cat([packed[:-4], torch.tensor([math.nan]).view(torch.uint8)]),
        torch.cat([packed[:-4], torch.tensor([-1.0]).view(torch.uint8)]),
        packed[:-1],
    ):
        with pytest.raises(MalformedMessage):
            codec.unpack(damaged, (6,), torch.float32)
    with pytest.raises(NotFinite):
        codec.pack(torch.tensor([math.inf]))
