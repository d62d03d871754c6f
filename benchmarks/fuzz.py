"""Hostile frames, one after another, at everything of the server that looks at a frame before anything is computed.

    python benchmarks/fuzz.py --inputs 1000000 --seed 0

Each input is the frame of an honest message with some of it changed: bits, a cut, more bytes, a piece of another frame,
a value of its header, numbers of a tensor, a tensor's shape or dtype. It goes the way of a real one: `frames.decode`
within the guard's limit, the guard, unpacking, the guard again. What may come of it is a message, `MalformedMessage` or
`Refused`; anything else ends the campaign with the input's number, from which it can be made again. Some of those that
pass are trained on: the server may say that training diverged, and no more than that.

"slowest" is one input's time, "growth" how much the process grew after its first thousand inputs.
"""

from __future__ import annotations

import argparse
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from cutlayer.device.shape import Shape
from cutlayer.device.talks.hybrid import SLOPES
from cutlayer.device.talks.pruned import CHANGE
from cutlayer.device.talks.queries import moved_shapes
from cutlayer.device.talks.shrinking import RANKS_LEFT
from cutlayer.errors import DivergedError, MalformedMessage, Refused
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.gate.forms import ScriptOf
from cutlayer.gate.guard import Guard
from cutlayer.gate.guarded import guarded
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import cost_model
from cutlayer.model.settings import ModelSettings
from cutlayer.model.structure import units_by_name
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.packing import UNCOMPRESSED, CompressedLink, Compression, compression
from cutlayer.policies.directions import Directions
from cutlayer.policies.prune import Prune
from cutlayer.policies.queries import Queries
from cutlayer.policies.repeat import Repeat
from cutlayer.policies.self_prune import SelfPrune
from cutlayer.report.listing import Listing
from cutlayer.report.summary import peak_memory_bytes
from cutlayer.rounds import hybrid, local, pruned, queries, shrinking, split, stream
from cutlayer.server.forecast import Forecast
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.server.steps.train import answer, train
from cutlayer.types import Adapter, DevicePlan, Kept, RoundPlan
from cutlayer.wire.codecs import packed_form
from cutlayer.wire.frames import DTYPES, decode, encode
from cutlayer.wire.link import Link
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    Facts,
    Gradients,
    Measured,
    Message,
    Recall,
    Update,
    passes_in_rounds,
)
from models import model_folder
from tables import publish

DEVICE, RUN, LONGEST, LABELS = "device-0", "run", 10, 3
TRAINED = 50
"""Every so many messages that pass are trained on."""
WARM_UP = 1000
PREFIX = struct.Struct("<4sII")


@dataclass(frozen=True)
class Scene:
    """A point of a round, and a message that an honest device would send there.

    Attributes:
      base: the model.
      assignment: what the device was told.
      before: what it has sent in this round.
      frame: the honest message, as it travels.
      codecs: how it is packed.
      server: who would train on it.
      script: what the shape of the round lets a device send.
      shape: its other end.
    """

    base: Base
    assignment: Assignment
    before: tuple[Message, ...]
    frame: bytes
    codecs: Compression
    server: Server
    script: ScriptOf
    shape: Shape


@dataclass
class Found:
    """The outcome of a campaign."""

    outcomes: Counter[str]
    seconds: float
    slowest_seconds: float
    growth_bytes: int


class Canned:
    """A transport that has one frame to deliver, and knows how long it may be."""

    bytes_sent = bytes_received = 0

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.frame = b""

    async def send(self, message: Message) -> None:
        """Drops what the server says."""

    async def receive(self) -> Message:
        message = decode(self.frame, max_bytes=self._guard.frame_limit())
        if not passes_in_rounds(message):
            raise Refused("wrong-kind", "fuzz: expected a message of a round, got another. Drop it.")
        return message


def fuzz(scenes: Sequence[Scene], inputs: int, seed: int, *, first: int = 0) -> Found:
    """Sends `inputs` changed frames, those of the numbers from `first` on.

    Raises:
      AssertionError: Something came of one that may not.
    """
    found, warm, start = Found(Counter(), 0.0, 0.0, 0), 0, time.perf_counter()
    passed = 0
    for number in range(first, first + inputs):
        rng = random.Random(f"{seed}/{number}")  # so that one input can be made again by itself
        scene = rng.choice(scenes)
        frame = changed(scene.frame, rng, scenes)
        began = time.perf_counter()
        try:
            message = received(scene, frame)
        except (MalformedMessage, Refused) as error:
            outcome = error.reason if isinstance(error, Refused) else "malformed"
        except Exception as error:
            raise AssertionError(f"input {number} of seed {seed}: {type(error).__name__}: {error}") from error
        else:
            outcome = "passed"
            passed += 1
        found.slowest_seconds = max(found.slowest_seconds, time.perf_counter() - began)
        if outcome == "passed" and passed % TRAINED == 0:
            try:
                outcome = trained(scene, message)
            except Exception as error:
                raise AssertionError(f"input {number} of seed {seed}, trained: {error!r}") from error
        found.outcomes[outcome] += 1
        if number == first + WARM_UP:
            warm = peak_memory_bytes()
    found.seconds = time.perf_counter() - start
    found.growth_bytes = peak_memory_bytes() - warm if warm else 0
    return found


def received(scene: Scene, frame: bytes) -> Message:
    """The message that the server's end of the link makes of a frame, at this point of the round."""
    guard = Guard(
        DEVICE,
        RUN,
        scene.base,
        hidden_size=int(scene.base.config.hidden_size),
        longest_tokens=LONGEST,
        compression=scene.codecs,
        holds=lambda _device, row: row < 4,
        script=scene.script,
    )
    transport = Canned(guard)
    link = guarded(transport, guard, lambda inner: compressed(scene, inner))
    at_once(link.send(scene.assignment))
    for message in scene.before:
        guard.check_form(message)
    transport.frame = frame
    return at_once(link.receive())


def compressed(scene: Scene, link: Link) -> Link:
    """The server's end as runs lay it around a link."""
    return CompressedLink(
        link,
        scene.codecs,
        hidden_size=int(scene.base.config.hidden_size),
        dtype=scene.base.dtype,
        started_from=scene.shape.started_from(scene.base),
    )


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def trained(scene: Scene, message: Message) -> str:
    """Trains the server on a message that passed; returns the outcome."""
    scene.server.begin(RoundPlan(0, (scene.assignment.plan,)), one_per_device)
    try:
        if isinstance(message, Activations):
            device = scene.server.ledger.device(message.device)
            answer(scene.server, message, *run_virtual(train(scene.server, message, device)))
        elif isinstance(message, Update) and message.samples:
            scene.server.accept(message)
            scene.server.contributions()
    except DivergedError:
        return "passed, diverged"
    return "passed, trained"


# ------------------------------------------------------------------ what is changed


def changed(frame: bytes, rng: random.Random, scenes: Sequence[Scene]) -> bytes:
    """The frame after one to three changes, mostly one: of several, the crudest decides."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        frame = rng.choice(CHANGES)(frame, rng, scenes)
    return frame


def _bits(frame: bytes, rng: random.Random, _scenes: Sequence[Scene]) -> bytes:
    """Up to eight bits, mostly of the header."""
    result = bytearray(frame)
    for _ in range(rng.randint(1, 8) if result else 0):
        end = min(len(result), 400) if rng.random() < 0.7 else len(result)
        result[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(result)


def _cut(frame: bytes, rng: random.Random, _scenes: Sequence[Scene]) -> bytes:
    return frame[: rng.randint(0, len(frame))]


def _longer(frame: bytes, rng: random.Random, _scenes: Sequence[Scene]) -> bytes:
    return frame + (bytes(16) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 64)))


def _spliced(frame: bytes, rng: random.Random, scenes: Sequence[Scene]) -> bytes:
    other = rng.choice(scenes).frame
    return frame[: rng.randint(0, len(frame))] + other[rng.randint(0, len(other)) :]


def _another(_frame: bytes, rng: random.Random, scenes: Sequence[Scene]) -> bytes:
    """An honest frame, of another point of a round."""
    return rng.choice(scenes).frame


def _numbers(frame: bytes, rng: random.Random, _scenes: Sequence[Scene]) -> bytes:
    """Four bytes of a tensor: not a number, infinite, huge, -1, or others."""
    start = len(frame) // 4 * 2
    if len(frame) < start + 8:
        return frame
    at = rng.randrange(start, len(frame) - 4) & ~3
    value = rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff\xff\xff\xff", rng.randbytes(4)])
    return frame[:at] + value + frame[at + 4 :]


def _header(frame: bytes, rng: random.Random, _scenes: Sequence[Scene]) -> bytes:
    """A well-formed header with one value replaced, whatever its type."""
    if len(frame) < PREFIX.size:
        return frame
    magic, version, length = PREFIX.unpack_from(frame)
    end = PREFIX.size + length
    try:
        header = msgpack.unpackb(frame[PREFIX.size : end])
        packed = msgpack.packb(_replaced(header, rng))
    except (ValueError, TypeError, OverflowError):
        return frame  # an earlier change has been here
    head = PREFIX.pack(magic, version, len(packed)) + packed
    return head + bytes(-len(head) % 16) + frame[end + (-end % 16) :]


def _replaced(value: Any, rng: random.Random) -> Any:
    """A copy of something that msgpack holds, in which one leaf is another."""
    if isinstance(value, list) and value and rng.random() < 0.95:
        at = rng.randrange(len(value))
        if rng.random() < 0.05:  # one entry less, or one twice
            return [*value[:at], *value[at + rng.choice([0, 1]) :]] if rng.random() < 0.5 else [*value, value[at]]
        return [*value[:at], _replaced(value[at], rng), *value[at + 1 :]]
    if rng.random() < 0.3:
        return rng.choice(LEAVES)
    return (
        rng.choice([leaf for leaf in LEAVES if type(leaf) is type(value)]) if rng.random() < 0.5 else _near(value, rng)
    )


def _near(value: Any, rng: random.Random) -> Any:
    """Another of the same type, near it where that can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return max(0, value + rng.choice([-1, 1, 2, 255]))
    if isinstance(value, float):
        return value * rng.choice([-1.0, 1e300, 1.001])
    return value


def _tensor(frame: bytes, rng: random.Random, _scenes: Sequence[Scene]) -> bytes:
    """A well-formed frame in which one tensor has another shape, another dtype or another place."""
    try:
        message = decode(frame, max_bytes=2**20)
    except MalformedMessage:
        return frame  # an earlier change has been here
    names = [field.name for field in fields(message) if isinstance(getattr(message, field.name), Tensor | dict)]
    if not names:
        return frame
    name = rng.choice(names)
    value = getattr(message, name)
    if isinstance(value, Tensor):
        return encode(replace(message, **{name: _misshapen(value, rng)}))
    if not value or rng.random() < 0.1:
        return encode(replace(message, **{name: {**value, "x": torch.zeros(2)}}))
    key = rng.choice(list(value))
    others = {other: tensor for other, tensor in value.items() if other != key}
    return encode(
        replace(message, **{name: others | {key: _misshapen(value[key], rng)} if rng.random() < 0.9 else others})
    )


def _misshapen(tensor: Tensor, rng: random.Random) -> Tensor:
    ways: list[Callable[[], Tensor]] = [
        lambda: tensor[:-1],
        lambda: torch.cat([tensor, tensor]),
        lambda: tensor[..., :-1],
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor.to(rng.choice(list(DTYPES.values()))),
        lambda: tensor.flip(0),
        lambda: torch.zeros_like(tensor),
        lambda: torch.full_like(tensor, 1e30) if tensor.is_floating_point() else tensor,
        lambda: torch.empty(0, dtype=tensor.dtype),
        lambda: torch.zeros((), dtype=tensor.dtype),
        lambda: torch.zeros((2**20, 0), dtype=tensor.dtype),
    ]
    try:
        return rng.choice(ways)()
    except (IndexError, RuntimeError):
        return torch.zeros((), dtype=tensor.dtype)


LEAVES: list[Any] = [
    0, 1, 3, 2**31, 2**40, 2**63, -1, 0.0, 0.5, float("nan"), float("inf"), None, True, "", "x" * 300,
    DEVICE, "device-1", "fp32", "bool", "update", "activations", "assignment", "hello", [], [0], [2**40, 2**40],
    [1] * 8, {}, b"x",
]  # fmt: skip
Change = Callable[[bytes, random.Random, Sequence[Scene]], bytes]
CRUDE: list[Change] = [_bits, _cut, _longer, _spliced, _another]
CHANGES: list[Change] = [*CRUDE, *[_numbers, _tensor, _header] * 4]


# ------------------------------------------------------------------ honest messages


def make_scenes() -> list[Scene]:
    """Every kind of message that a device sends, at every point where it may, packed and not."""
    rows_B = torch.arange(4, dtype=torch.int32)
    cut = DevicePlan(DEVICE, cut=2, batch_size=4, local_steps=2)
    keeping, looking = cut.having(Repeat()), cut.having(Directions(2, 1e-3, 1.0))
    whole = DevicePlan(DEVICE, cut=3, batch_size=4, local_steps=2, top=3)
    shrunk = replace(whole, ranks=(8,) * 3).having(SelfPrune((4,) * 3))
    alone = (whole, whole.having(Prune(0.5)), shrunk, whole.having(Queries(2, 1e-2, "dual")))
    scenes = []
    for task in ("causal-lm", "classification"):
        world = World(task)
        first, second = world.activations(cut, 0), world.activations(cut, 1)
        named = [replace(batch, rows_B=rows_B) for batch in (first, second)]
        recall, closing = Recall(RUN, 0, 1, DEVICE, rows_B, LONGEST), world.update(cut, 2 * first.weight)
        slopes = [Facts(RUN, 0, step, DEVICE, {SLOPES: torch.tensor([0.5, -2.0])}) for step in range(2)]
        events_E6 = torch.tensor([[0.0, 1.0, 1, 0, 1e9, 0]], dtype=torch.float64)
        measured = Measured(RUN, 0, DEVICE, ("forward",), events_E6)
        for name in ("none", "int8", "topk:0.25"):
            codecs = compression(activations=name, gradients=name, adapters=name)
            one, two, kept, more = (
                replace(batch, h_BTD=codecs.activations.pack(batch.h_BTD)) for batch in (first, second, *named)
            )
            scenes += [
                world.scene(cut, (), one, codecs),
                world.scene(cut, (one,), two, codecs),
                world.scene(cut, (one, two), world.packed(closing, codecs), codecs),
                world.scene(cut, (one, two), measured, codecs),
                world.scene(keeping, (), kept, codecs),
                world.scene(keeping, (kept,), more, codecs),
                world.scene(keeping, (kept,), recall, codecs),
                world.scene(looking, (one,), slopes[0], codecs),
                world.scene(looking, (one, slopes[0]), two, codecs),
                world.scene(looking, (one, slopes[0], two, slopes[1]), replace(closing, adapter={}), codecs),
            ]
            for plan in alone:
                scenes.append(world.scene(plan, (), world.packed(world.update(plan, 8), codecs), codecs))
        answer = Gradients(RUN, 0, 0, DEVICE, torch.zeros(4, LONGEST, 16), 0.5)  # which only a server says
        scenes.append(world.scene(cut, (), answer, UNCOMPRESSED))
    return scenes


class World:
    """One model, its server, and what a device of it would send."""

    def __init__(self, task: Any) -> None:
        labels = LABELS if task == "classification" else 0
        settings = ModelSettings(
            str(model_folder("tiny")), task, num_labels=labels, lora=LoraSettings(targets=("all-linear",))
        )
        self.base, costs = Base(settings), cost_model(settings).of(split.SHAPE.flow)
        fleet = Fleet(name="fuzz", source="made up", server=SERVER, devices=(PROFILE,))
        self.server = Server(
            RUN,
            self.base,
            self.base.initial_adapter(0),
            ModelledMachine("server", 1e12, lambda _event: None),
            costs,
            TrainSettings(OptimizerSettings()),
            lambda _round, _step: 1e-3,
            Forecast(fleet, costs),
            LONGEST,
        )
        self._per_token = task == "causal-lm"

    def assignment(self, plan: DevicePlan) -> Assignment:
        self.server.begin(RoundPlan(0, (plan,)), one_per_device)
        return self.server.assignment(plan)

    def scene(self, plan: DevicePlan, before: tuple[Message, ...], message: Message, codecs: Compression) -> Scene:
        shape = shape_of(plan)
        frame = encode(message)
        return Scene(self.base, self.assignment(plan), before, frame, codecs, self.server, shape.script, shape.SHAPE)

    def activations(self, plan: DevicePlan, step: int, **fields: Any) -> Activations:
        shape = (plan.batch_size, LONGEST)
        mask_BT = torch.arange(LONGEST) < torch.tensor([10, 9, 7, 4])[:, None]
        tokens = torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(step), dtype=torch.int32)
        labels = torch.where(mask_BT, tokens, -100) if self._per_token else tokens[:, 0] % LABELS
        weight = int((labels[:, 1:] != -100).sum()) if self._per_token else plan.batch_size
        h_BTD = torch.randn(*shape, 16, generator=torch.Generator().manual_seed(step))
        return Activations(RUN, 0, step, DEVICE, h_BTD, mask_BT, labels.int(), weight, **fields)

    def update(self, plan: DevicePlan, weight: int) -> Update:
        """The honest update of a device; one that prunes has its first units left."""
        adapter, facts = dict(self.assignment(plan).adapter), Adapter()
        if prune := plan.clause(Prune):
            heads, channels = (tuple(range(number)) for number in self.base.structure.left(prune.ratio))
            kept = Kept((heads,) * 3, (channels,) * 3)
            adapter = self.base.structure.slice_all(adapter, kept)
            scores = {name: torch.ones(self.base.structure.count(name)) for name, _ in units_by_name(kept)}
            facts = {CHANGE: torch.ones((), dtype=torch.float64), **self.base.structure.to_tensors(kept, scores)}
        elif may := plan.clause(SelfPrune):
            adapter = self.base.at_ranks(adapter, may.ranks)
            facts = {RANKS_LEFT: torch.tensor(may.ranks, dtype=torch.int32)}
        elif plan.clause(Queries):
            moved = moved_shapes({name: tuple(value.shape) for name, value in adapter.items()})
            adapter = {name: adapter[name] for name in moved}
        alone = (2, 8, weight, 0.7) if plan.head else (0, 8, weight, 0.0)
        return Update(RUN, 0, DEVICE, adapter, *alone, 1.0, facts)

    def packed(self, update: Update, codecs: Compression) -> Update:
        """Packs differences of nothing in place of the tensors: an update is what changed."""
        if codecs == UNCOMPRESSED:
            return update
        zeros = {name: torch.zeros_like(value) for name, value in update.adapter.items()}
        return replace(update, adapter={name: codecs.update.pack(value) for name, value in zeros.items()})


def shape_of(plan: DevicePlan) -> Any:
    """The module of a shape in which such a plan is made: its script, and its other end."""
    for clause, shape in {
        Repeat: stream,
        Directions: hybrid,
        Prune: pruned,
        SelfPrune: shrinking,
        Queries: queries,
    }.items():
        if plan.clause(clause):
            return shape
    return local if plan.head else split


SHAPES: dict[Any, Any] = {
    Repeat: stream,
    Directions: hybrid,
    Prune: pruned,
    SelfPrune: shrinking,
    Queries: queries,
}
SERVER = ServerProfile(flops_per_second=1e12, efficiency=1.0, memory_bytes=2**34)
PROFILE = DeviceProfile(
    name=DEVICE,
    flops_per_second=1e9,
    efficiency=1.0,
    memory_bytes=2**30,
    up_bits_per_second=1e6,
    down_bits_per_second=1e6,
    latency_seconds=0.01,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzzes, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input, to see one again")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/fuzz.json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scenes = make_scenes()
    for scene in scenes:
        honest(scene)
    found = fuzz(scenes, chosen.inputs, chosen.seed, first=chosen.first)
    table = Listing("outcome", "inputs", title=f"{chosen.inputs} changed frames, seed {chosen.seed}")
    for outcome, count in found.outcomes.most_common():
        table.add_row(outcome, str(count))
    figures = Listing("seconds", "slowest ms", "growth MiB", "peak MiB", "packed forms held")
    figures.add_row(
        f"{found.seconds:.0f}",
        f"{found.slowest_seconds * 1e3:.1f}",
        f"{found.growth_bytes / 2**20:.1f}",
        f"{peak_memory_bytes() / 2**20:.0f}",
        str(packed_form.cache_info().currsize),
    )
    settings = {"inputs": chosen.inputs, "seed": chosen.seed, "first": chosen.first}
    rows = {
        "outcomes": dict(found.outcomes),
        "seconds": found.seconds,
        "slowest_seconds": found.slowest_seconds,
        "growth_bytes": found.growth_bytes,
        "peak_bytes": peak_memory_bytes(),
    }
    publish([table, figures], chosen.json, settings, rows)


def honest(scene: Scene) -> None:
    """Raises unless the unchanged frame does what one should: what a device sends passes."""
    try:
        received(scene, scene.frame)
    except Refused as error:
        if error.reason != "wrong-kind":
            raise


if __name__ == "__main__":
    main()
