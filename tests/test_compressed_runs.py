"""The laws of compression, on every row of the method table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.packing import UNCOMPRESSED, Compression, compression
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import LABELS
from cutlayer.types import Adapter
from cutlayer.wire.frames import encode
from cutlayer.wire.messages import Activations, Finish, Gradients, Message
from turns import by_turns

METHODS = [name for name in TABLE if name != "fedkseed"]
"""Those that send something that codecs pack; FedKSeed sends facts."""
CODECS = ["bf16", "int8", "topk:0.25"]
WHOLE: dict[str, dict[str, object]] = {"fedsl": {"bits": None}, "teasq_fed": {"share": 1.0, "bits": 32}}
"""Options with which a method packs no update itself, which these tests compare with."""
STEPS = 2

ModelMaker = Callable[[str, str], Path]


def open_base(tiny_model: ModelMaker, dtype: str = "fp32") -> Base:
    model = tiny_model("bert", "classification")
    lora = LoraSettings(targets=("all-linear",))  # some methods need it, the others do not mind
    return Base(ModelSettings(str(model), "classification", num_labels=LABELS, dtype=dtype, lora=lora))


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model)


@pytest.fixture(scope="module")
def half(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model, "bf16")


def played(base: Base, method: str, codecs: Compression, *, rate: float = 1e30, **options: object) -> Played:
    """A run at this many bits per second; by default bytes cost no time, and no plan or order depends on them."""
    rates = {"up_bits_per_second": rate, "down_bits_per_second": rate}
    devices = tuple(device.model_copy(update=rates) for device in fleet_of(3).devices)
    fleet = fleet_of(3).model_copy(update={"devices": devices})
    streams = streams_for(fleet, "classification", steps=2 * STEPS)
    built = build_method(method, {**WHOLE.get(method, {}), **options}, 0)
    return play(base, built, fleet, streams, local_steps=STEPS, compression=codecs)


def trained(played: Played) -> Adapter:
    """The adapter, or where devices have adapters of their own all of these, by `<device>/<name>`."""
    own = {f"{device}/{name}": value for device, view in played.views.items() for name, value in view.items()}
    return own or played.adapter


def differing(one: Played, other: Played) -> list[str]:
    ones, others = trained(one), trained(other)
    assert ones.keys() == others.keys()
    return [name for name in ones if not torch.equal(ones[name], others[name])]


def everything(name: str) -> Compression:
    return compression(activations=name, gradients=name, adapters=name)


def lengths(messages: list[Message]) -> int:
    return sum(len(encode(message)) for message in messages if not isinstance(message, Finish))


@pytest.mark.parametrize(("method", "codec"), list(by_turns(product(METHODS, CODECS), one_of=5)))
def test_every_method_with_every_codec(method: str, codec: str, bert: Base) -> None:
    plain, packed = (played(bert, method, codecs) for codecs in (UNCOMPRESSED, everything(codec)))
    start = bert.initial_adapter(0)
    changed = {name for name, value in trained(plain).items() if not torch.equal(value, start[name.rpartition("/")[2]])}
    assert changed, "a run that trains nothing proves nothing"
    assert differing(packed, plain), "compression is real, not only counted"
    assert all(torch.isfinite(value).all() for value in trained(packed).values())
    for direction, sent in (("bytes_up", packed.sent_up), ("bytes_down", packed.sent_down)):
        reported = sum(row[direction] for row in packed.rows)
        assert reported == lengths(sent)
        assert reported <= sum(row[direction] for row in plain.rows)
    assert sum(row["bytes_up"] for row in packed.rows) < sum(row["bytes_up"] for row in plain.rows)


@pytest.mark.parametrize("codec", CODECS)
def test_what_both_ends_must_hold_alike_is_never_packed(codec: str, bert: Base) -> None:
    plain, packed = (played(bert, "fedkseed", codecs) for codecs in (UNCOMPRESSED, everything(codec)))
    assert not differing(plain, packed)
    assert lengths(plain.sent_up) == lengths(packed.sent_up)


@pytest.mark.parametrize("method", list(by_turns(METHODS, one_of=3)))
def test_bf16_of_a_bf16_model_changes_no_bit(method: str, half: Base) -> None:
    plain, packed = (
        played(half, method, codecs) for codecs in (UNCOMPRESSED, compression(activations="bf16", gradients="bf16"))
    )
    assert not differing(plain, packed)
    assert plain.events == packed.events


@pytest.mark.parametrize("method", list(by_turns(METHODS, one_of=3)))
def test_all_of_top_k_changes_no_bit_across_the_cut(method: str, bert: Base) -> None:
    """The neutral setting: everything is kept, and costs twice the bytes."""
    packed = played(bert, method, compression(activations="topk:1", gradients="topk:1"))
    assert not differing(played(bert, method, UNCOMPRESSED), packed)


@pytest.mark.parametrize("method", list(by_turns(METHODS, one_of=3)))
def test_all_of_top_k_is_the_update_up_to_rounding(method: str, bert: Base) -> None:
    plain, packed = (played(bert, method, codecs) for codecs in (UNCOMPRESSED, compression(adapters="topk:1")))
    for name, value in trained(plain).items():
        torch.testing.assert_close(trained(packed)[name], value, rtol=1e-4, atol=1e-5)


def test_fewer_bytes_take_less_time(bert: Base) -> None:
    plain, packed = (played(bert, "memsfl", everything(name), rate=1e5) for name in ("none", "int8"))
    assert packed.rows[-1]["virtual_seconds"] < plain.rows[-1]["virtual_seconds"]


def test_only_what_is_asked_is_packed(bert: Base) -> None:
    plain = played(bert, "memsfl", UNCOMPRESSED)
    for role, kind in (("activations", Activations), ("gradients", Gradients)):
        packed = played(bert, "memsfl", compression(**{role: "int8"}))
        pairs = zip(by_place(packed.sent_up + packed.sent_down), by_place(plain.sent_up + plain.sent_down), strict=True)
        assert {type(one) for one, whole in pairs if len(encode(one)) != len(encode(whole))} == {kind}


def by_place(messages: list[Message]) -> list[Message]:
    """In an order that time does not change."""
    return sorted(
        messages,
        key=lambda message: (
            type(message).__name__,
            message.round,
            getattr(message, "device", message.reason if isinstance(message, Finish) else ""),
            getattr(message, "step", 0),
        ),
    )


def test_the_gradient_is_that_at_the_unpacked_activations(bert: Base) -> None:
    """The server's answer to packed activations is its answer to a device that sent the unpacked ones whole."""
    packed = played(bert, "memsfl", compression(activations="int8"), order="fifo")
    answers = {
        (message.device, message.step): message
        for message in packed.sent_down
        if isinstance(message, Gradients) and message.round == 0
    }
    codec = compression(activations="int8").activations
    part = bert.server_part(1)
    part.use(bert.initial_adapter(0))
    (first,) = (
        message
        for message in packed.sent_up
        if isinstance(message, Activations) and (message.device, message.step, message.round) == ("device-0", 0, 0)
    )
    h_BTD = codec.unpack(first.h_BTD, (*first.h_BTD.shape[:-1], 16), torch.float32).requires_grad_()
    part.loss(h_BTD, first.mask_BT, first.labels.long()).backward()
    answer = answers["device-0", 0].grad_BTD
    assert answer is not None
    assert torch.equal(answer, h_BTD.grad)


@pytest.mark.parametrize("codec", CODECS)
def test_a_frozen_device_is_sent_no_gradients(codec: str, bert: Base) -> None:
    sent = played(bert, "memsfl", everything(codec), cut=0).sent_down
    answers = [message for message in sent if isinstance(message, Gradients)]
    assert len(answers) == 2 * 3 * STEPS
    assert all(answer.grad_BTD is None for answer in answers)
