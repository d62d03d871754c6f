"""A compressed link: messages of packed tensors between the ends, whole tensors outside; updates as differences."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import ConfigError, DivergedError, MalformedMessage
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.link import modelled_link
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.packing import UNCOMPRESSED, CompressedLink, Compression, codec_under, compression
from cutlayer.policies.channels import DropChannels
from cutlayer.policies.few_bits import FewBits
from cutlayer.policies.moments import FreshMoments
from cutlayer.policies.sparse_then_dense import PackedUpdate
from cutlayer.state import State
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.codecs import NONE, Bf16, Int8, Sparse, TopK
from cutlayer.wire.frames import decode, encode
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Assignment, Finish, Gradients, Message, Update

T = TypeVar("T")
D = 16
PROFILE = DeviceProfile(
    name="phone",
    flops_per_second=1e12,
    efficiency=0.5,
    memory_bytes=2**30,
    up_bits_per_second=8000,
    down_bits_per_second=16_000,
    latency_seconds=0.25,
)
ALL_INT8 = compression(activations="int8", gradients="int8", adapters="int8")


class Wire:
    """A link that keeps what is sent, to be handed to the other end as it would come out of a frame."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.bytes_sent = self.bytes_received = 0

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def receive(self) -> Message:
        return await self.inbox.get()


def end(link: Link, codecs: Compression = UNCOMPRESSED, dtype: torch.dtype = torch.float32) -> CompressedLink:
    return CompressedLink(link, codecs, hidden_size=D, dtype=dtype)


def run(program: Coroutine[Any, Any, T]) -> T:
    return run_virtual(program)


async def carry(sender: CompressedLink, receiver: CompressedLink, wires: tuple[Wire, Wire], message: Message) -> Any:
    """Sends, encodes, decodes, receives."""
    await sender.send(message)
    frame = encode(wires[0].sent[-1])
    wires[1].inbox.put_nowait(decode(frame, max_bytes=2**20))
    return await receiver.receive()


def hidden(seed: int, *, samples: int = 2, tokens: int = 3) -> torch.Tensor:
    return torch.randn(samples, tokens, D, generator=torch.Generator().manual_seed(seed))


def activations(seed: int = 0, step: int = 0) -> Activations:
    h_BTD = hidden(seed)
    return Activations("run", 0, step, "phone", h_BTD, h_BTD[..., 0] > 0, torch.zeros(2).int(), 2)


def adapter(seed: int) -> Adapter:
    """Numbers of 12 bits: fp32 adds and subtracts them exactly, and every other codec loses some."""
    generator, shapes = torch.Generator().manual_seed(seed), {"a": (4, D), "b": (D, 4), "c": (3,)}
    return {name: torch.randint(-2047, 2048, shape, generator=generator) / 256 for name, shape in shapes.items()}


def assignment(values: Adapter, round: int = 0) -> Assignment:
    return Assignment("run", round, "phone", DevicePlan("phone"), (0.1,), values)


def update(values: Adapter, round: int = 0) -> Update:
    return Update("run", round, "phone", values, 0, 1, 1, 0.0, 0.5)


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Pair:
    """Both ends of one connection."""

    def __init__(self, codecs: Compression, dtype: torch.dtype = torch.float32) -> None:
        self.up, self.down = Wire(), Wire()
        self.device, self.server = end(self.up, codecs, dtype), end(self.down, codecs, dtype)

    async def to_server(self, message: Message) -> Any:
        return await carry(self.device, self.server, (self.up, self.down), message)

    async def to_device(self, message: Message) -> Any:
        return await carry(self.server, self.device, (self.down, self.up), message)


# ------------------------------------------------------------------ what arrives


def test_by_names() -> None:
    assert compression() == UNCOMPRESSED == Compression(NONE, NONE, NONE, NONE)
    assert compression(activations="int8", gradients="bf16", adapters="topk:0.5") == Compression(
        activations=Int8(), gradients=Bf16(), broadcast=NONE, update=TopK(0.5, rows=False)
    ), "top-k of a broadcast would be a device without most of its adapter"
    assert compression(activations="topk:0.5", adapters="int8").broadcast == Int8()
    with pytest.raises(ConfigError, match="got 'int4'"):
        compression(gradients="int4")


@pytest.mark.parametrize("name", ["none", "bf16", "int8", "topk:0.25"])
def test_each_role_is_packed_by_its_own_codec(name: str) -> None:
    async def program() -> None:
        codec = compression(activations=name).activations
        for codecs, changed in (
            (compression(activations=name), (True, False)),
            (compression(gradients=name), (False, True)),
            (compression(adapters=name), (False, False)),
        ):
            pair, sent = Pair(codecs), activations()
            answer = Gradients("run", 0, 0, "phone", hidden(1), 0.5)
            up, down = await pair.to_server(sent), await pair.to_device(answer)
            for whole, got, packed in (
                (sent.h_BTD, up.h_BTD, changed[0]),
                (answer.grad_BTD, down.grad_BTD, changed[1]),
            ):
                assert whole is not None
                expected = codec.unpack(codec.pack(whole), whole.shape, whole.dtype) if packed else whole
                assert torch.equal(got, expected)
                assert torch.equal(got, whole) == (not packed or name == "none")
            assert torch.equal(up.mask_BT, sent.mask_BT)
            assert torch.equal(up.labels, sent.labels)

    run(program())


def test_a_frozen_device_and_an_empty_adapter() -> None:
    async def program() -> None:
        pair, answer = Pair(ALL_INT8), Gradients("run", 0, 0, "phone", None, 0.5)
        assert await pair.to_device(answer) == answer
        assert (await pair.to_device(assignment({}))).adapter == {}
        assert (await pair.to_server(update({}))).adapter == {}

    run(program())


def test_a_message_that_has_nothing_to_pack() -> None:
    assert run(Pair(ALL_INT8).to_device(Finish("run", 1, "done"))) == Finish("run", 1, "done")


def test_bf16_of_bf16_changes_no_bit() -> None:
    async def program() -> None:
        sent = replace(activations(), h_BTD=hidden(0).bfloat16())
        got = await Pair(compression(activations="bf16"), torch.bfloat16).to_server(sent)
        assert got.h_BTD.dtype is torch.bfloat16
        assert torch.equal(got.h_BTD, sent.h_BTD)

    run(program())


def test_bytes_are_those_of_what_is_packed() -> None:
    packed = replace(activations(), h_BTD=Int8().pack(activations().h_BTD))

    async def program() -> tuple[int, ...]:
        device, server = (end(link, ALL_INT8) for link in modelled_link(PROFILE, lambda event: None))
        await device.send(activations())
        await server.receive()
        return device.bytes_sent, server.bytes_received, server.bytes_sent, device.bytes_received

    assert run(program()) == (len(encode(packed)), len(encode(packed)), 0, 0)


# ------------------------------------------------------------------ adapters


@pytest.mark.parametrize("name", ["bf16", "int8", "topk:0.25", "topk:1"])
def test_a_device_that_trains_nothing_changes_nothing(name: str) -> None:
    """The server's adapter stays what it was, whatever the broadcast lost on the way down."""

    async def program() -> None:
        pair, values = Pair(compression(adapters=name)), adapter(0)
        received = (await pair.to_device(assignment(values))).adapter
        assert same(received, values) == name.startswith("topk")
        assert same((await pair.to_server(update(received))).adapter, values)

    run(program())


@pytest.mark.parametrize("name", ["bf16", "int8", "topk:0.25"])
def test_an_update_is_the_difference_to_what_the_device_got(name: str) -> None:
    async def program() -> None:
        codecs, values = compression(adapters=name), adapter(0)
        pair = Pair(codecs)
        received = (await pair.to_device(assignment(values))).adapter
        trained = {key: value + 0.01 * adapter(1)[key] for key, value in received.items()}
        got = (await pair.to_server(update(trained))).adapter
        for key, value in trained.items():
            change = value - received[key]
            through = codecs.update.unpack(codecs.update.pack(change), change.shape, change.dtype)
            assert torch.equal(got[key], values[key] + through)
            assert (pair.device.state().tensors[key] - (change - through)).abs().max() == 0
            assert pair.device.state().tensors[key].any(), "a codec that loses nothing would prove nothing"

    run(program())


def test_top_k_cuts_over_a_whole_tensor() -> None:
    async def program() -> None:
        pair, values = Pair(compression(adapters="topk:0.0625")), {"a": torch.zeros(4, D)}
        await pair.to_device(assignment(values))
        trained = torch.zeros(4, D)
        trained[2, :6] = torch.arange(1.0, 7.0)
        got = (await pair.to_server(update({"a": trained}))).adapter["a"]
        assert got[2].tolist() == [0, 0, 3, 4, 5, 6, *[0] * 10], "four of 64, all of one row"
        assert not got[[0, 1, 3]].any()

    run(program())


def test_what_an_update_lost_is_in_the_next() -> None:
    """With changes of (3, 2, 0, ...) at each round and room for one number, both come through in turn."""

    async def program() -> None:
        pair, values = Pair(compression(adapters="topk:0.1")), {"c": torch.zeros(8)}
        change, arrived = torch.tensor([3.0, 2.0, 0, 0, 0, 0, 0, 0]), []
        for number in range(4):
            received = (await pair.to_device(assignment(values, number))).adapter["c"]
            values = (await pair.to_server(update({"c": received + change}, number))).adapter
            arrived.append(values["c"][:2].tolist())
        assert arrived == [[3.0, 0.0], [3.0, 4.0], [9.0, 4.0], [9.0, 8.0]]
        assert pair.device.state().tensors["c"][:2].tolist() == [3.0, 0.0], (
            "12 and 8 were trained, 9 and 8 have arrived"
        )

    run(program())


def test_without_error_feedback_what_an_update_lost_is_gone() -> None:
    async def program() -> None:
        pair = Pair(compression(adapters="topk:0.1", error_feedback=False))
        values, change = {"c": torch.zeros(8)}, torch.tensor([3.0, 2.0, 0, 0, 0, 0, 0, 0])
        for number in range(4):
            received = (await pair.to_device(assignment(values, number))).adapter["c"]
            values = (await pair.to_server(update({"c": received + change}, number))).adapter
        assert values["c"][:2].tolist() == [12.0, 0.0], "the smaller change never arrives"
        assert pair.device.state() == State()

    run(program())


def test_what_is_owed_follows_the_device_when_it_is_stopped() -> None:
    async def program(stop: bool) -> Adapter:
        pair, values = Pair(compression(adapters="topk:0.25")), adapter(0)
        for number in range(3):
            received = (await pair.to_device(assignment(values, number))).adapter
            trained = {key: value + 0.01 * adapter(number)[key] for key, value in received.items()}
            values = (await pair.to_server(update(trained, number))).adapter
            if stop:
                state = pair.device.state()
                pair = Pair(compression(adapters="topk:0.25"))
                pair.device.load(state)
        return values

    assert same(run(program(stop=True)), run(program(stop=False)))


def test_a_tensor_that_changed_its_shape_or_left_owes_nothing() -> None:
    async def program() -> None:
        pair = Pair(compression(adapters="topk:0.25"))
        for number, values in enumerate((adapter(0), {"a": torch.zeros(2, D)})):
            received = (await pair.to_device(assignment(values, number))).adapter
            trained = {key: value + 1.0 + adapter(5)[key][: len(value)] for key, value in received.items()}
            got = (await pair.to_server(update(trained, number))).adapter
        assert pair.device.state().tensors.keys() == {"a"}
        assert torch.equal(got["a"] + pair.device.state().tensors["a"], trained["a"])

    run(program())


def test_fresh_factors_owe_nothing() -> None:
    """The part that the last update lost belongs to factors that are gone."""

    async def program() -> None:
        pair, values = Pair(compression(adapters="topk:0.25")), adapter(0)
        for number in range(2):
            told = assignment(values, number)
            received = (await pair.to_device(replace(told, plan=told.plan.having(FreshMoments())))).adapter
            assert pair.device.state() == State()
            await pair.to_server(update({key: value + 1.0 for key, value in received.items()}, number))
            assert pair.device.state().tensors != {}

    run(program())


def test_an_update_whose_sending_is_given_up_loses_nothing() -> None:
    async def program() -> None:
        pair = Pair(compression(adapters="topk:0.25"))
        received = (await pair.to_device(assignment(adapter(0)))).adapter
        trained = update({key: value + 1.0 + adapter(5)[key][: len(value)] for key, value in received.items()})

        async def refuse(message: Message) -> None:
            raise TimeoutError

        send, pair.up.send = pair.up.send, refuse  # type: ignore[method-assign]
        with pytest.raises(TimeoutError):
            await pair.device.send(trained)
        assert pair.device.state() == State()
        pair.up.send = send  # type: ignore[method-assign]
        first = (await pair.to_server(trained)).adapter
        assert same({key: first[key] + lost for key, lost in pair.device.state().tensors.items()}, trained.adapter)

    run(program())


def test_an_update_of_a_round_that_is_over_stays_as_it_came() -> None:
    """The server has opened the next round while it was on its way: nobody can use it, and nothing is lost by it."""

    async def program() -> None:
        pair = Pair(compression(adapters="topk:1"))
        early = (await pair.to_device(assignment(adapter(0), 0))).adapter
        await pair.server.send(assignment(adapter(1), 1))
        late = await pair.to_server(update(early, 0))
        assert late.round == 0
        assert same(late.adapter, pair.up.sent[-1].adapter)
        await pair.to_device(assignment(adapter(1), 1))
        assert same((await pair.to_server(update(adapter(1), 1))).adapter, adapter(1))
        with pytest.raises(MalformedMessage, match="update of round 1: expected one of rounds \\[\\]"):
            await pair.device.send(update(adapter(1), 1))

    run(program())


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_told_with_its_place(number: float) -> None:
    async def program() -> None:
        sent = activations(step=3)
        sent.h_BTD[1, 2, 3] = number
        with pytest.raises(DivergedError, match=r"phone, round 0, Activations: expected finite .* 1 of 96") as told:
            await Pair(ALL_INT8).device.send(sent)
        assert (told.value.device, told.value.round, told.value.step) == ("phone", 0, 3)

    run(program())


@pytest.mark.parametrize(
    ("codecs", "message", "match"),
    [
        ({"activations": "int8"}, activations(), "expected torch.uint8 of shape .2, 3, 20., got torch.float32"),
        ({}, replace(activations(), h_BTD=Int8().pack(hidden(0))), "expected torch.float32 of shape .2, 3, 16., got"),
        ({}, replace(activations(), h_BTD=hidden(0)[..., :8]), r"of shape .2, 3, 16., got torch.float32 of .2, 3, 8."),
        ({}, replace(activations(), h_BTD=torch.ones(())), "got torch.float32 of .."),
        ({"adapters": "int8"}, update(adapter(0), 7), r"round 7: expected one of rounds \[0\]"),
        ({"adapters": "int8"}, update({"x": torch.zeros(2, 9).byte()}), "'x': expected what was broadcast"),
        ({"adapters": "int8"}, update({"a": torch.zeros(4, D + 5).byte()}), r"of shape .4, 20., got"),
        ({"adapters": "int8"}, assignment({"a": torch.zeros(4, 4).byte()}), "expected rows, got shape"),
        ({"adapters": "int8"}, assignment({"a": torch.zeros(()).byte()}), "expected rows, got shape"),
        ({"adapters": "int8"}, assignment(adapter(0)), "got torch.float32"),
        ({"adapters": "bf16"}, assignment(adapter(0)), "expected torch.bfloat16"),
    ],
)
def test_a_packed_message_that_is_none(codecs: dict[str, str], message: Message, match: str) -> None:
    async def program() -> None:
        pair = Pair(compression(**codecs))
        await pair.to_device(assignment(adapter(0)))
        pair.down.inbox.put_nowait(message)
        with pytest.raises(MalformedMessage, match=match) as told:
            await pair.server.receive()
        assert "\n" not in str(told.value)

    run(program())


def test_a_device_that_trained_what_it_was_not_sent() -> None:
    async def program() -> None:
        pair = Pair(compression(adapters="topk:0.5"))
        await pair.to_device(assignment(adapter(0)))
        for values in ({"x": torch.zeros(3)}, {"a": torch.zeros(2, D)}):
            with pytest.raises(MalformedMessage, match="Compress adapters with `none` where devices send others"):
                await pair.device.send(update(values))

    run(program())


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.sampled_from(["bf16", "int8", "topk:0.25"]), st.integers(0, 3), st.integers(0, 2**32))
def test_damaged_frames_are_refused_or_make_another_message(name: str, kind: int, seed: int) -> None:
    """The link tells what a frame cannot: nothing but MalformedMessage, and tensors of the shape to expect."""
    dice = random.Random(seed)
    codecs = compression(activations=name, gradients=name, adapters=name)

    async def program() -> None:
        pair = Pair(codecs)
        received = (await pair.to_device(assignment(adapter(0)))).adapter
        message = [
            activations(),
            Gradients("run", 0, 0, "phone", hidden(1), 0.5),
            update(received),
            assignment(received),
        ]
        await pair.device.send(message[kind])
        frame = bytearray(encode(pair.up.sent[-1]))
        for _ in range(dice.randint(1, 3)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        try:
            pair.down.inbox.put_nowait(decode(bytes(frame), max_bytes=2**20))
            got = await pair.server.receive()
        except MalformedMessage:
            return
        if isinstance(got, Activations):
            assert got.h_BTD.shape[-1] == D
            assert got.h_BTD.dtype is torch.float32
        if isinstance(got, Update):
            assert all(value.shape == adapter(0)[key].shape for key, value in got.adapter.items())

    run(program())


def test_a_plan_says_how_its_update_is_packed_where_the_run_does_not() -> None:
    """Nothing of what a method's codec loses is owed; what the run file says comes first."""
    plan = DevicePlan("phone").having(PackedUpdate("sparse:0.25:8"))
    assert codec_under(plan, "update", NONE) == Sparse(0.25, 8)
    assert codec_under(plan, "update", Int8()) == Int8()
    assert codec_under(DevicePlan("phone"), "update", NONE) is NONE
    start = {"w": torch.zeros(4, 8)}
    trained = {"w": torch.arange(32.0).reshape(4, 8)}

    async def program() -> tuple[Message, Message, Adapter]:
        there, here = Wire(), Wire()
        server, device = end(there), end(here)
        await server.send(Assignment("run", 0, "phone", plan, (0.1,), start))
        here.inbox.put_nowait(there.sent[0])
        await device.receive()
        await device.send(Update("run", 0, "phone", trained, 1, 4, 4, 0.5, 0.0))
        there.inbox.put_nowait(here.sent[0])
        return here.sent[0], await server.receive(), device.state().tensors

    packed, unpacked, owed = run_virtual(program())
    assert isinstance(packed, Update)
    assert isinstance(unpacked, Update)
    assert packed.adapter["w"].shape == (4 + 8 + 4,)
    kept = unpacked.adapter["w"].flatten()
    assert not kept[:24].any()
    torch.testing.assert_close(kept[24:], trained["w"].flatten()[24:], rtol=0, atol=31 / 127)
    assert not owed


# ------------------------------------------------------------------ codecs that a plan chooses


PLANNED = DevicePlan("phone").having(DropChannels(0.25, seed=1)).having(FewBits(6, seed=2))


def opened(values: Adapter, round: int = 0, plan: DevicePlan = PLANNED) -> Assignment:
    return replace(assignment(values, round), plan=plan)


def test_a_plan_chooses_the_codecs_of_its_round_alone() -> None:
    """Activations lose a quarter of their channels, others in each step; an update has six bits a number."""
    pair, start, trained = Pair(UNCOMPRESSED), adapter(0), adapter(1)

    async def program() -> tuple[Any, Any, Any, Any]:
        await pair.to_device(opened(start))
        first, second = [await pair.to_server(activations(0, step)) for step in range(2)]
        after = await pair.to_server(update(trained))
        await pair.to_device(opened(trained, 1, DevicePlan("phone")))
        plain = await pair.to_server(replace(activations(0), round=1))
        return first, second, after, plain

    first, second, after, plain = run(program())
    dropped = [(message.h_BTD == 0).all(0).all(0) for message in (first, second)]
    assert [int(where.sum()) for where in dropped] == [4, 4]
    assert not torch.equal(*dropped)
    assert torch.equal(plain.h_BTD, activations(0).h_BTD)
    for name, value in after.adapter.items():
        step = float((trained[name] - start[name]).abs().max()) / 31
        assert float((value - trained[name]).abs().max()) <= step * 1.0001
        assert not torch.equal(value, trained[name])


def test_what_a_plan_rounds_without_bias_is_not_owed() -> None:
    pair = Pair(UNCOMPRESSED)

    async def program() -> None:
        await pair.to_device(opened(adapter(0)))
        await pair.to_server(update(adapter(1)))

    run(program())
    assert pair.device.state().tensors == {}


def test_activations_of_a_round_that_is_over_stay_as_they_came() -> None:
    """Nobody can use them, and the plan by which they were packed is gone."""
    pair = Pair(UNCOMPRESSED)

    async def program() -> Any:
        await pair.to_device(opened(adapter(0)))
        late = activations(0)
        await pair.device.send(late)
        await pair.to_device(opened(adapter(0), 1, DevicePlan("phone")))
        pair.down.inbox.put_nowait(pair.up.sent[0])
        return await pair.server.receive()

    assert run(program()).h_BTD.shape[-1] == 12


def test_codecs_under_a_plan_go_around_the_runs() -> None:
    codec = codec_under(PLANNED, "activations", Int8(), "at")
    assert codec.pack(torch.randn(2, 3, D)).shape == (2, 3, 12 + 4)
    assert codec_under(DevicePlan("phone"), "activations", Int8()) == Int8()
    assert codec_under(PLANNED, "broadcast", NONE) is NONE
