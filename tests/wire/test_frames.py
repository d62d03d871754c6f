"""Frames: what goes in comes out, lengths are exact, and no bytes get through that `encode` cannot make."""

import dataclasses
import gc
import math
import random
import struct
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import MalformedMessage
from cutlayer.policies.directions import Directions
from cutlayer.policies.prune import Prune
from cutlayer.policies.repeat import Repeat
from cutlayer.policies.self_prune import SelfPrune
from cutlayer.types import Adapter, Clause, DevicePlan
from cutlayer.wire.frames import DTYPES, MAX_DIMS, MAX_ENTRIES, decode, encode, frame_bytes
from cutlayer.wire.messages import (
    PROTOCOL_VERSION,
    Activations,
    Assignment,
    Close,
    Facts,
    Finish,
    Gradients,
    HeldOut,
    Hidden,
    HiddenGradients,
    Judge,
    Judged,
    Measured,
    Message,
    Recall,
    SiteReport,
    SiteRound,
    SpanAnswer,
    SpanCall,
    Update,
)

PLENTY = 2**30
few = settings(max_examples=150, deadline=None, derandomize=True)
many = settings(max_examples=400, deadline=None, derandomize=True)
very_many = settings(max_examples=2000, deadline=None, derandomize=True)

counts = st.integers(0, 2**40)
words = st.text(max_size=12)
floats = st.floats(allow_nan=False)


def read(frame: bytes | bytearray | memoryview) -> Any:
    return decode(frame, max_bytes=PLENTY)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype of the wire, any bits, up to 3 dimensions, also empty, also not contiguous."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    below = 2 if dtype is torch.bool else 256
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, below, (num_bytes,), generator=generator, dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)
    return tensor.mT if tensor.ndim >= 2 and draw(st.booleans()) else tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Everything(Clause):
    """A clause with a field of every type that one may have."""

    words: str
    count: int
    number: float
    flag: bool
    counts: tuple[int, ...]
    numbers: tuple[float, ...]
    names: tuple[str, ...] = ()


adapters = st.dictionaries(words, tensors(), max_size=3)
some_counts = st.lists(counts, max_size=3).map(tuple)
clauses = st.one_of(
    st.builds(
        Everything,
        words=words,
        count=counts,
        number=floats,
        flag=st.booleans(),
        counts=some_counts,
        numbers=st.lists(floats, max_size=3).map(tuple),
        names=st.lists(words, max_size=3).map(tuple),
    ),
    st.builds(Prune, ratio=floats, score=st.booleans()),
    st.builds(SelfPrune, ranks=some_counts, penalty=floats),
    st.builds(Directions, count=counts, mu=floats, scale=floats, at_once=counts),
    st.just(Repeat()),
)
plans = st.builds(
    DevicePlan,
    device=words,
    cut=counts,
    batch_size=counts,
    local_steps=counts,
    top=st.none() | st.integers(0, 200),
    ranks=some_counts,
    micro_batches=counts,
    overlap=st.booleans(),
    clauses=st.lists(clauses, max_size=3).map(tuple),
)
messages = st.one_of(
    st.builds(
        Assignment,
        run=words,
        round=counts,
        device=words,
        plan=plans,
        learning_rates=st.lists(floats, max_size=3).map(tuple),
        adapter=adapters,
        folds=adapters,
        facts=adapters,
        counted=st.none() | counts,
    ),
    st.builds(Facts, run=words, round=counts, step=counts, device=words, facts=adapters),
    st.builds(Close, run=words, round=counts, wanted=st.booleans(), reason=words),
    st.builds(
        Measured,
        run=words,
        round=counts,
        device=words,
        whats=st.lists(words, max_size=3).map(tuple),
        events_E6=tensors(),
    ),
    st.builds(
        Activations,
        run=words,
        round=counts,
        step=counts,
        device=words,
        h_BTD=tensors(),
        mask_BT=tensors(),
        labels=st.none() | tensors(),
        weight=counts,
        rows_B=st.none() | tensors(),
        micro_batch=counts,
        micro_batches=counts,
        others_weight=counts,
    ),
    st.builds(
        Recall,
        run=words,
        round=counts,
        step=counts,
        device=words,
        rows_B=tensors(),
        num_tokens=counts,
    ),
    st.builds(Hidden, run=words, round=counts, step=counts, device=words, h_BTD=tensors()),
    st.builds(
        HiddenGradients,
        run=words,
        round=counts,
        step=counts,
        device=words,
        grad_BTD=tensors(),
        loss=floats,
    ),
    st.builds(
        Gradients,
        run=words,
        round=counts,
        step=counts,
        device=words,
        grad_BTD=st.none() | tensors(),
        loss=floats,
    ),
    st.builds(
        Update,
        run=words,
        round=counts,
        device=words,
        adapter=adapters,
        steps=counts,
        samples=counts,
        weight=counts,
        loss=floats,
        busy_seconds=floats,
        facts=adapters,
    ),
    st.builds(Finish, run=words, round=counts, reason=words),
)

GRADIENTS = Gradients("run", 1, 2, "phone", torch.arange(6, dtype=torch.float32).reshape(1, 2, 3), 0.5)


def plain(value: object) -> object:
    """Something that can be compared by ==, to the bit."""
    if isinstance(value, torch.Tensor):
        bits = value.contiguous().reshape(-1).view(torch.uint8).tolist()
        return value.dtype, tuple(value.shape), bits
    if isinstance(value, dict):
        return [(name, plain(tensor)) for name, tensor in value.items()]
    return value


def same(a: Message, b: Message) -> bool:
    names = [field.name for field in dataclasses.fields(a)]
    return type(a) is type(b) and all(plain(getattr(a, n)) == plain(getattr(b, n)) for n in names)


KIND, FIELDS, TENSORS = range(3)
"""Places in a header."""


def parts(frame: bytes) -> tuple[list[Any], bytes]:
    """The header of a frame, and what follows it."""
    (length,) = struct.unpack_from("<I", frame, 8)
    return msgpack.unpackb(frame[12 : 12 + length]), frame[12 + length + (-(12 + length) % 16) :]


def place(kind: type[Any], name: str) -> int:
    """Where a header has the value of a field."""
    hints, tensors = get_type_hints(kind), (torch.Tensor, torch.Tensor | None, Adapter)
    plain_ones = [field.name for field in dataclasses.fields(kind) if hints[field.name] not in tensors]
    return plain_ones.index(name)


def changed(values: list[Any], at: int, value: object) -> list[Any]:
    """The list with another value in one place."""
    return [*values[:at], value, *values[at + 1 :]]


def frame_around(packed: bytes) -> bytes:
    """A frame with any bytes for a header, and no tensors."""
    head = struct.pack("<4sII", b"CUTL", PROTOCOL_VERSION, len(packed)) + packed
    return head + bytes(-len(head) % 16)


def frame_of(header: list[Any], body: bytes = b"") -> bytes:
    """A frame with any header, well-formed but for what the header says."""
    return frame_around(msgpack.packb(header)) + body


# ------------------------------------------------------------------ there and back


@few
@given(messages)
def test_what_goes_in_comes_out(message: Message) -> None:
    frame = encode(message)
    assert same(decode(frame, max_bytes=len(frame)), message)
    assert frame_bytes(message) == len(frame)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda frame: memoryview(b"x" + frame)[1:]])
def test_any_buffer_will_do_at_any_address(kind: Callable[[bytes], memoryview]) -> None:
    assert same(read(kind(encode(GRADIENTS))), GRADIENTS)


def test_the_bytes_of_version_5() -> None:
    """If this fails, frames of the last release are misread: raise PROTOCOL_VERSION."""
    message = Gradients("r", 0, 1, "d", torch.tensor([1.0, 2.0], dtype=torch.bfloat16), 0.5)
    assert encode(message) == (
        b"CUTL\x05\0\0\0\x2e\0\0\0"
        b"\x93\xa9gradients"
        b"\x96\xa1r\x00\x01\xa1d\xcb\x3f\xe0\0\0\0\0\0\0\x00"
        b"\x91\x93\xa8grad_BTD\xa4bf16\x91\x02"
        b"\0\0\0\0\0\0"
        b"\x80\x3f\x00\x40"
        b"\0\0\0\0\0\0\0\0\0\0\0\0"
    )


@pytest.mark.parametrize("buffer", [bytes, bytearray])
def test_elements_outlive_the_frame_object(buffer: type[bytes] | type[bytearray]) -> None:
    message = read(buffer(encode(GRADIENTS)))
    gc.collect()
    assert same(message, GRADIENTS)


def test_elements_are_not_copied() -> None:
    frame = bytearray(encode(GRADIENTS))
    message = read(frame)
    frame[-9] ^= 0x80  # the sign of the last of six float32, which 8 bytes of padding follow
    assert message.grad_BTD.flatten().tolist() == [0, 1, 2, 3, 4, -5]


def test_decoded_tensors_are_aligned() -> None:
    update = Update("run", 0, "phone", {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(5)}, 0, 1, 1, 0.0, 0.0)
    adapter = read(encode(update)).adapter
    assert [tensor.data_ptr() % 16 for tensor in adapter.values()] == [0, 0]


def test_a_trained_parameter_is_sent_without_its_graph() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    update = Update("run", 0, "phone", {"a": parameter}, 0, 1, 1, 0.0, 0.0)
    assert not read(encode(update)).adapter["a"].requires_grad


def test_elements_that_lie_apart_travel_in_order() -> None:
    every_second = torch.arange(10, dtype=torch.int32)[::2]
    sent = dataclasses.replace(GRADIENTS, grad_BTD=every_second)
    assert read(encode(sent)).grad_BTD.tolist() == [0, 2, 4, 6, 8]


def test_a_loss_that_is_not_finite_travels() -> None:
    for loss in (math.inf, math.nan):
        message = dataclasses.replace(GRADIENTS, loss=loss)
        assert str(read(encode(message)).loss) == str(loss)


def test_a_whole_number_is_a_float_where_a_float_is_due() -> None:
    message = read(encode(dataclasses.replace(GRADIENTS, loss=3)))
    assert isinstance(message.loss, float)


@pytest.mark.parametrize("write", [encode, frame_bytes])
def test_a_dtype_that_has_no_place_on_the_wire(write: Callable[[Message], object]) -> None:
    with pytest.raises(MalformedMessage, match=r"'grad_BTD': expected a dtype among .*, got torch"):
        write(dataclasses.replace(GRADIENTS, grad_BTD=torch.ones(1, dtype=torch.complex64)))


def test_the_length_is_told_without_the_elements() -> None:
    message = dataclasses.replace(GRADIENTS, grad_BTD=torch.empty(2**20, 2**10, 2**6, device="meta"))
    assert frame_bytes(message) - 2**38 < 200


def test_a_plan_has_its_clauses_again() -> None:
    clauses = (Prune(0.3, score=False), SelfPrune((4, 0, 2), 0.5), Repeat())
    plan = DevicePlan("phone", cut=2, clauses=clauses)
    received = read(encode(Assignment("run", 0, "phone", plan, (0.1,), {})))
    assert received.plan == plan
    assert received.plan.clause(SelfPrune) == clauses[1]


# ------------------------------------------------------------------ what is refused


def refused(frame: bytes | bytearray, match: str, max_bytes: int = PLENTY) -> None:
    with pytest.raises(MalformedMessage, match=match) as caught:
        decode(frame, max_bytes=max_bytes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_frame_longer_than_the_plan_allows() -> None:
    frame = encode(GRADIENTS)
    refused(frame, f"at most {len(frame) - 1} bytes, got {len(frame)}", max_bytes=len(frame) - 1)


def test_another_magic() -> None:
    refused(b"CUTE" + encode(GRADIENTS)[4:], "expected b'CUTL', got b'CUTE'")


def test_another_version_names_both() -> None:
    frame = bytearray(encode(GRADIENTS))
    frame[4] = PROTOCOL_VERSION + 8
    refused(frame, f"version {PROTOCOL_VERSION}, got {PROTOCOL_VERSION + 8}")


@pytest.mark.parametrize("length", range(len(encode(GRADIENTS))))
def test_a_frame_cut_short(length: int) -> None:
    refused(encode(GRADIENTS)[:length], "expected")


def test_bytes_left_over() -> None:
    refused(encode(GRADIENTS) + bytes(16), "frame length")


def test_padding_that_is_not_zero() -> None:
    frame = bytearray(encode(GRADIENTS))
    frame[-1] = 1
    refused(frame, "padding")


def test_a_header_longer_than_the_frame() -> None:
    refused(struct.pack("<4sII", b"CUTL", PROTOCOL_VERSION, 2**32 - 1), "4294967295 bytes")


@pytest.mark.parametrize(
    "packed", [b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 2000 + b"\x90", b"\xa1\xff", b"\x81\x90\x01"]
)
def test_a_header_that_is_not_msgpack(packed: bytes) -> None:
    refused(frame_around(packed), "frame header")


def test_a_list_is_not_allocated_by_the_length_that_it_claims() -> None:
    refused(frame_around(b"\xdd\x00\x00\x10\x00" * 8), r"got '4096 .*\(40\)")
    refused(frame_around(b"\xdd\x00\x01\x00\x01" + bytes(70_000)), f"got '65537 .*{MAX_ENTRIES}")


def test_a_deep_header_is_told_in_short() -> None:
    refused(frame_around(b"\x91" * 500 + b"\x90"), r"expected \[kind, values, tensors\], got")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({KIND: "parcel"}, "one of assignment, .*got 'parcel'"),
        ({KIND: ["finish"]}, "frame kind"),
        (
            {FIELDS: None},
            "gradients fields: expected the values of run, round, step, device, loss, micro_batch, got None",
        ),
        ({FIELDS: ["run"]}, "gradients fields"),
        ({FIELDS: ["run", 1, 2, "phone", 0.5, 0, 0]}, "gradients fields"),
        ({FIELDS: {"run": "run"}}, "gradients fields"),
        ({TENSORS: {}}, "frame tensors: expected a list"),
        ({TENSORS: [["grad_BTD", "fp32"]]}, r"\[path, dtype, shape\]"),
        ({TENSORS: [[7, "fp32", [6]]]}, "a path that is text"),
        ({TENSORS: [["grad_BTD", "complex64", [3]]]}, "one of fp64"),
        ({TENSORS: [["grad_BTD", ["fp32"], [6]]]}, "one of fp64"),
        ({TENSORS: [["grad_BTD", "fp32", [-1, -6]]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [2.0, 3.0]]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [6, True]]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", 6]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [6] + [1] * MAX_DIMS]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [2**60]]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [0, 2**63]]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [2**40, 2**40]]]}, "tensor shape"),
        ({TENSORS: [["grad_BTD", "fp32", [9]]]}, "'grad_BTD': expected 36 bytes, got 32"),
        ({TENSORS: [["grad_BTD", "fp32", [3]]]}, "frame length|padding"),
        ({TENSORS: [["grad_BTD", "fp32", [4]], ["grad_BTD", "fp32", [2]]]}, "each path once"),
        ({TENSORS: [["h_BTD", "fp32", [6]]]}, "only those of its fields, got .'h_BTD'"),
        ({TENSORS: [["grad_BTD", "bool", [24]]]}, "booleans of 0 and 1"),
    ],
)
def test_a_header_that_claims_what_is_not_so(change: dict[int, object], match: str) -> None:
    header, body = parts(encode(GRADIENTS))
    assert same(read(frame_of(header, body)), GRADIENTS)
    [(at, value)] = change.items()
    refused(frame_of(changed(header, at, value), body), match)


@pytest.mark.parametrize(
    "header", [[], ["finish", ["run", 0, "done"]], ["finish", ["run", 0, "done"], [], []], {}, None]
)
def test_a_header_of_other_parts(header: Any) -> None:
    refused(frame_of(header), r"frame header: expected \[kind, values, tensors\]")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("run", b"run", "run"),
        ("round", -1, "round: expected a count, got -1"),
        ("round", True, "round: expected a count, got True"),
        ("round", 1.0, "round: expected a count, got 1.0"),
        ("round", msgpack.Timestamp(0), "round"),
        ("loss", "0.5", "loss"),
        ("loss", None, "loss"),
        ("loss", True, "loss"),
        ("device", "x" * 10_000, ""),
    ],
)
def test_a_field_of_another_type(field: str, value: object, match: str) -> None:
    header, body = parts(encode(GRADIENTS))
    header[FIELDS][place(Gradients, field)] = value
    if match:
        refused(frame_of(header, body), match)
    else:
        assert read(frame_of(header, body)).device == value


def test_a_tensor_that_is_missing() -> None:
    header, body = parts(encode(Hidden("run", 0, 0, "phone", torch.ones(1))))
    header[TENSORS].pop()
    refused(frame_of(header, body[:-16]), "'h_BTD': expected a tensor, got None")


def test_a_plan_is_checked_like_a_message() -> None:
    message = Assignment("run", 0, "phone", DevicePlan("phone"), (0.1, 0.2), {})
    header, _ = parts(encode(message))
    fields = header[FIELDS]
    plan, rates = place(Assignment, "plan"), place(Assignment, "learning_rates")
    cut = place(DevicePlan, "cut")

    def frame(at: int, value: object) -> bytes:
        return frame_of(changed(header, FIELDS, changed(fields, at, value)))

    for wrong in (
        changed(fields[plan], cut, -1),
        changed(fields[plan], cut, None),
        [*fields[plan], 1],
        fields[plan][:-1],
    ):
        refused(frame(plan, wrong), "assignment plan")
    refused(frame(rates, [0.1, "a"]), "learning_rates")
    refused(frame(rates, 0.1), "learning_rates")


EVERYTHING = list(dataclasses.astuple(Everything("word", 1, 0.5, True, (1, 2), (0.5,), ("a", "b"))))
CLAUSE = ["Everything", EVERYTHING]


@pytest.mark.parametrize(
    ("clause", "match"),
    [
        (["Parcel", []], r"clauses: expected \[name, values\], the name one of .*Everything.*, got \['Parcel', \[\]\]"),
        (["Clause", []], r"expected \[name, values\]"),
        (["DevicePlan", ["phone"]], r"expected \[name, values\]"),
        ([["Everything"], []], r"expected \[name, values\]"),
        (["Everything"], r"expected \[name, values\]"),
        (["Repeat", [], []], r"expected \[name, values\]"),
        ("Repeat", r"expected \[name, values\]"),
        ({"Repeat": []}, r"expected \[name, values\]"),
        (None, r"expected \[name, values\]"),
        (["Repeat", None], "clauses Repeat fields: expected the values of none"),
        (["Repeat", [1]], "clauses Repeat fields: expected the values of none"),
        (["Prune", [0.5]], "clauses Prune fields: expected the values of ratio, score"),
        (["Prune", {"ratio": 0.5, "score": True}], "clauses Prune fields: expected the values of ratio, score"),
        (["Prune", ["0.5", True]], "Prune ratio: expected .*float.*, got '0.5'"),
        (["Prune", [0.5, 1]], "Prune score: expected .*bool.*, got 1"),
        *(
            (
                ["Everything", changed(EVERYTHING, place(Everything, next(iter(wrong))), next(iter(wrong.values())))],
                f"Everything {next(iter(wrong))}",
            )
            for wrong in (
                {"words": 1},
                {"words": b"word"},
                {"count": -1},
                {"count": 1.0},
                {"count": True},
                {"number": None},
                {"number": True},
                {"flag": 0},
                {"counts": [1, -1]},
                {"counts": [1, "a"]},
                {"counts": 1},
                {"numbers": [[0.5]]},
                {"names": ["a", 1]},
                {"names": None},
            )
        ),
    ],
    ids=str,
)
def test_a_clause_is_checked_like_a_message(clause: object, match: str) -> None:
    message = Assignment("run", 0, "phone", DevicePlan("phone"), (0.1, 0.2), {})
    header, _ = parts(encode(message))

    def frame(*clauses: object) -> bytes:
        at = place(Assignment, "plan")
        plan = changed(header[FIELDS][at], place(DevicePlan, "clauses"), list(clauses))
        return frame_of(changed(header, FIELDS, changed(header[FIELDS], at, plan)))

    assert read(frame(CLAUSE)).plan.clauses == (Everything("word", 1, 0.5, True, (1, 2), (0.5,), ("a", "b")),)
    refused(frame(clause), match)
    refused(frame(CLAUSE, clause), match)


ADAPTER = {"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(0, 2, dtype=torch.bfloat16)}
ONE_OF_EACH = [
    Assignment("run", 0, "phone", DevicePlan("phone", cut=2), (0.1, 0.2), ADAPTER),
    Assignment("run", 0, "phone", DevicePlan("phone", clauses=(Prune(0.5), Repeat())), (0.1,), {}, facts=ADAPTER),
    Facts("run", 0, 1, "phone", ADAPTER),
    Activations("run", 0, 1, "phone", torch.ones(1, 2, 2), torch.ones(1, 2) > 0, torch.ones(1).int(), 1),
    Activations("run", 0, 1, "phone", torch.ones(1, 2, 2), torch.ones(1, 2) > 0, None, 1),
    Hidden("run", 0, 1, "phone", torch.ones(1, 2, 2)),
    HiddenGradients("run", 0, 1, "phone", torch.ones(1, 2, 2), 0.5),
    GRADIENTS,
    dataclasses.replace(GRADIENTS, grad_BTD=None),
    Update("run", 0, "phone", ADAPTER, 2, 3, 4, 0.25, 0.5),
    Update("run", 0, "phone", {}, 2, 3, 4, 0.25, 0.5, {"fact": torch.ones(2, dtype=torch.int32)}),
    Recall("run", 0, 1, "phone", torch.arange(3, dtype=torch.int32), 8),
    Measured("run", 0, "phone", ("forward",), torch.zeros(2, 6, dtype=torch.float64)),
    Close("run", 0, True, "deadline"),
    Judge("run", 3, "phone", DevicePlan("phone", cut=2), ADAPTER, 3),
    HeldOut("run", 3, 1, "phone", torch.ones(1, 2, 2), torch.ones(1, 2) > 0, torch.ones(1).int(), 1),
    HeldOut("run", 3, 1, "phone", torch.ones(1, 2, 2), torch.ones(1, 2) > 0, None, 1),
    Judged("run", 3, "phone", 4, 4, 0.5, torch.ones(3, 2, dtype=torch.int64)),
    SpanCall("run", 0, 1, "phone", 2, 4, torch.ones(1, 2, 2), torch.ones(1, 2) > 0, torch.ones(1, 2, 2), True, ADAPTER),
    SpanAnswer("run", 0, 1, "phone", None, torch.ones(1, 2, 2), ADAPTER),
    SiteRound("run", 2, "clinic", (DevicePlan("phone", cut=2), DevicePlan("tablet")), (), None, True, ADAPTER, 7, 1),
    SiteReport("run", 2, "clinic", {}, 9, 0.5, "[]", ("phone",), ("forward",), torch.zeros(1, 7, dtype=torch.float64)),
    Finish("run", 9, "done"),
]


def test_one_of_each_is_one_of_each() -> None:
    assert {type(message) for message in ONE_OF_EACH} == set(get_args(Message))


@very_many
@given(st.sampled_from(ONE_OF_EACH), st.integers(0, 2**32))
def test_changed_bytes_are_refused_or_make_another_message(message: Message, seed: int) -> None:
    frame, dice = bytearray(encode(message)), random.Random(seed)
    for _ in range(dice.randint(1, 3)):
        position = dice.randrange(len(frame))
        match dice.randrange(4):
            case 0:
                frame[position] = dice.randrange(256)
            case 1:
                frame[position] ^= 1 << dice.randrange(8)
            case 2:
                frame[position:position] = dice.randbytes(dice.randint(1, 20))
            case _:
                del frame[position + 1 : position + dice.randint(1, 20)]
    decoded_or_refused(frame)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | words | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@many
@given(st.sampled_from(ONE_OF_EACH), st.data())
def test_a_changed_header_is_refused_or_makes_another_message(message: Message, data: st.DataObject) -> None:
    header, body = parts(encode(message))
    node: Any = header
    key: Any = data.draw(st.sampled_from(range(len(header))))
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
        node = node[key]
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
    node[key] = data.draw(junk)
    decoded_or_refused(frame_of(header, body))


def decoded_or_refused(frame: bytes | bytearray) -> None:
    """Either a message that can be sent again, or MalformedMessage; nothing else."""
    try:
        message = read(bytes(frame))
    except MalformedMessage:
        return
    assert same(read(encode(message)), message)
