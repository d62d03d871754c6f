"""A server and its devices over a modelled network with faults, in one process, on the virtual clock.

What runs is `serve` and `join` as they are, with every byte of every message; modelled are the network
(`testing/faults.py`) and the machines. What costs a real process its start (tokenizer, data, weights) is read once and
shared. A run is a function of its seed: the faults, when they strike, how small the buffers are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from cutlayer import joining
from cutlayer.config import RunConfig, read_config
from cutlayer.data.tasks import Samples
from cutlayer.device import agent, own_link
from cutlayer.device.own_data import read_own_data
from cutlayer.device.probe import Probed
from cutlayer.errors import JoinError, StragglersError, UserError
from cutlayer.files import sha256
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.profile import Fleet, load_fleet
from cutlayer.gate.hub import Hub
from cutlayer.model import cost
from cutlayer.model.base import Base
from cutlayer.model.fingerprint import Fingerprint, fingerprint
from cutlayer.model.pieces import PieceServer
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import ModelFiles
from cutlayer.report.progress import NoProgress
from cutlayer.run import desk as hosting
from cutlayer.run import run as running
from cutlayer.run import served as serving
from cutlayer.run.inputs import ServerInputs, completed, prepare, prepare_server, write_shares
from cutlayer.settings import load_tokenizer
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.testing.faults import KINDS, LIES, FaultyCarrier, LyingCarrier, Schedule, drawn
from cutlayer.transport import session
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.session import Session, Standing
from cutlayer.types import Recorder
from cutlayer.wire.messages import Hello, Ready
from models import model_folder

ROUNDS, LOCAL_STEPS, BATCH_SIZE, ROWS = 3, 2, 2, 6
"""Sizes for each device; it passes its data twice, so that what the server keeps of the first time is recalled."""
LATENCY_SECONDS = 0.01
LONGEST_SECONDS = 4_000.0
"""Seconds on the virtual clock: a run that takes longer hangs."""
AWAY_SECONDS = 40.0
"""The longest that what crashed stays away."""
LIAR = "liar"
"""The member that lies, where one does."""
CALLED_SERVER = "called server"
"""The lie of a member whose name is another machine's."""
HEAD_START_SECONDS = 2.0
"""Seconds by which the liar comes before the others."""
CRASHES = ("crash device", "crash server", "full disk", "skewed clock")
FLEET: dict[str, Any] = {
    "server": {"tflops": 0.00001, "efficiency": 0.3, "memory_gib": 4},
    "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 10, "memory_gib": 1},
    "devices": [
        {"name": "slow", "tflops": 0.0000005, "max_blocks": 1},
        {"name": "quick", "tflops": 0.000001, "max_blocks": 2},
    ],
}

_who: ContextVar[str] = ContextVar("who", default="")
"""The device that runs here."""


# ------------------------------------------------------------------ the world: what all runs of a setting share


@dataclass
class World:
    """A run without faults, and what others of the same setting share with it.

    Attributes:
      values: keys of the config.
      inputs: a folder with the model and the data.
      scratch: where run folders go.
      judges: whether the server has validation rows of its own.
    """

    values: dict[str, Any]
    inputs: Path
    scratch: Path
    judges: bool = True

    @property
    def data(self) -> dict[str, Path]:
        return _shares(self.inputs)[0]

    @cached_property
    def _config(self) -> RunConfig:
        config = read_config(None, values={**_values(self.inputs), **self.values})
        data = _shares(self.inputs)[1].config.data.model_copy(update={"hold_out": config.data.hold_out})
        return completed(config.model_copy(update={"data": data}))

    @property
    def rows(self) -> int:
        """Number of rows that each device trains on."""
        return ROWS - round(ROWS * self._config.data.hold_out)

    def run_inputs(self, out: Path) -> ServerInputs:
        """Inputs of a new life of the server."""
        made = replace(_shares(self.inputs)[1], config=self._config.model_copy(update={"out": str(out)}))
        if not self.judges:
            made = replace(made, validation=Samples.none())
        made.__dict__["base"] = base(made.model_settings)
        made.__dict__["costs"] = cost_model(made.model_settings).of(made.shape.flow)
        return made

    @cached_property
    def fleet(self) -> Fleet:
        return load_fleet(FLEET)

    @property
    def waits_for_all(self) -> bool:
        return self.values.get("train.stragglers", "wait_all") == "wait_all"

    @cached_property
    def reference(self) -> Result:
        """The run to which nothing happens."""
        result = play(self, Plan(seed=0))
        assert not result.problems, result.problems
        return result


def _values(inputs: Path) -> dict[str, Any]:
    return {
        "model.name": str(inputs / "model"),
        "data.path": str(inputs / "data"),
        "data.task": "causal-lm",
        "data.prompt": "question",
        "data.template": "plain",
        "data.answer": "reply",
        "data.max_length": 8,
        "train.rounds": ROUNDS,
        "train.eval_every": ROUNDS,
        "train.local_steps": LOCAL_STEPS,
        "train.batch_size": BATCH_SIZE,
        "lora.rank": 2,
        "lora.targets": ("c_attn",),
        "fleet": FLEET,
    }


@cache
def _shares(inputs: Path) -> tuple[dict[str, Path], ServerInputs]:
    """The devices' files, and what the server reads."""
    files, config = write_shares(prepare(read_config(None, values=_values(inputs))), inputs / "shares")
    return files, prepare_server(config)


def write_inputs(folder: Path) -> Path:
    """Writes a tiny model with its tokenizer and a few sums."""
    shutil.copytree(model_folder("tiny"), folder / "model")
    words = [*("<pad>", "</s>", "<unk>"), *(f"n{number}" for number in range(60))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    random = Random(0)
    for name, rows in (("train", ROWS * len(FLEET["devices"])), ("validation", 2)):
        numbers = [[random.randrange(20) for _ in range(random.randint(2, 3))] for _ in range(rows)]
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"question": " ".join(f"n{one}" for one in row), "reply": f"n{sum(row)}"}) + "\n"
                for row in numbers
            )
        )
    return folder


# ------------------------------------------------------------------ one run


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run: what goes wrong in it, and within which bounds.

    Attributes:
      seed: of everything that is drawn.
      kinds: of faults, of which some are drawn.
      count: faults.
      packets: among so many.
      piece_bytes: the longest piece of a frame.
      kept_bytes: of sent frames in the server's memory.
      model: what devices are told of the model; `server` sends it.
      lie: what one more member of the fleet says, which comes first (`testing/faults.py`); empty for none.
    """

    seed: int
    kinds: tuple[str, ...] = ()
    count: int = 0
    packets: int = 1
    piece_bytes: int = 2**21
    kept_bytes: int = 2**24
    model: str = ""
    lie: str = ""


def drawn_plan(seed: int, packets: int, kinds: tuple[str, ...] = (*KINDS, *CRASHES)) -> Plan:
    """The plan of a seed: one kind of fault alone, or all of them.

    Args:
      seed: Of the draw.
      packets: Of the run without faults.
      kinds: To draw from.
    """
    random = Random(f"plan {seed}")
    chosen = kinds if random.random() < 0.5 else (random.choice(kinds),)
    return Plan(
        seed,
        chosen,
        count=random.choice((1, 2, 4, 8)),
        packets=int(packets * random.uniform(0.5, 1.5)),
        piece_bytes=random.choice((300, 1500, 2**21)),
        kept_bytes=random.choice((0, 2**24)),
        model=random.choice(("server", *("",) * 5)),
    )


@dataclass
class Result:
    """The outcome of a run.

    Attributes:
      outcome: `done`, or the error with which it ended.
      problems: what must not be.
      faults: that struck, by kind.
      recoveries: what the sessions did about them.
      packets: that were sent.
      seconds: on the virtual clock.
      facts: what decides a run's result.
      lies: that were told.
    """

    outcome: str = ""
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: Counter[str] = field(default_factory=Counter)
    packets: int = 0
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    lies: int = 0


def liar_of(lie: str) -> str:
    """The name of the member that says it."""
    return "server" if lie == CALLED_SERVER else LIAR


def play(world: World, plan: Plan, keep: Path | None = None) -> Result:
    """One run, looked at when it is over: what must hold whatever happens (`Result.problems`).

    Args:
      world: The setting.
      plan: What happens.
      keep: Where the run's folder stays; None throws it away.
    """
    out = world.scratch / f"run-{os.getpid()}" / "server"
    shutil.rmtree(out.parent, ignore_errors=True)
    result = Result()
    stage = _Stage(world, plan, out, result)
    with contextlib.ExitStack() as patches:
        for change in _patches(stage):
            patches.enter_context(change)
        try:
            run_virtual(stage.run())
        except Exception as error:
            result.outcome = type(error).__name__
            result.problems.append("".join(traceback.format_exception(error))[-3000:])
    result.faults = stage.schedule.struck + stage.struck
    result.packets = stage.schedule.packets
    for one in stage.sessions:
        result.recoveries.update(one.counts)
    if result.outcome in ("done", "StragglersError"):
        _look(world, out, result)
        if world.waits_for_all and plan.kinds:
            _compare(world.reference.facts, result)
    if keep is not None and out.exists():
        shutil.move(out, keep)
    shutil.rmtree(out.parent, ignore_errors=True)
    return result


class _Stage:
    """The network, the server and the devices of one run, and what happens to them."""

    def __init__(self, world: World, plan: Plan, out: Path, result: Result) -> None:
        self.world, self.plan, self.out, self.result = world, plan, out, result
        self.random = Random(f"stage {plan.seed}")
        self.struck: Counter[str] = Counter()
        self.sessions: list[Session] = []
        self.budgets: list[Budget] = []
        self.full_disks = 0
        self.clocks: dict[str, float] = {}  # by device, how much too fast: its clock jumps when this changes
        link_kinds = tuple(kind for kind in plan.kinds if kind in KINDS)
        crashes = [kind for kind in plan.kinds if kind in CRASHES]
        share = plan.count * len(crashes) // max(1, len(plan.kinds))
        number = share if link_kinds else plan.count
        faults = drawn(self.random, plan.count - number, packets=plan.packets, kinds=link_kinds) if link_kinds else {}
        calls = {
            self.random.randrange(plan.packets): self._call(self.random.choice(crashes))
            for _ in range(number if crashes else 0)
        }
        self.schedule = Schedule(faults, calls)
        self._hub: Hub | None = None
        self._attending: dict[asyncio.Task[None], tuple[str, FaultyCarrier]] = {}
        self._server: asyncio.Task[Any] | None = None
        self._devices: dict[str, asyncio.Task[None]] = {}
        self._lives = Counter[str]()
        self._away: set[asyncio.Task[None]] = set()
        self._dying: set[asyncio.Task[Any]] = set()

    # -------------------------------------------------------------- who runs

    async def run(self) -> None:
        """Plays the run until the server is done and every device knows."""
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        async with asyncio.timeout(LONGEST_SECONDS):
            self._serve()
            if self.plan.lie:
                self._join(liar_of(self.plan.lie))
                await asyncio.sleep(HEAD_START_SECONDS)
            for name in self.world.data:
                self._join(name)
            try:
                await self._settle()
            finally:
                self.result.seconds = now()
                for task in [*self._away, *self._devices.values(), *([self._server] if self._server else [])]:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        for budget in self.budgets:
            if budget.held_bytes:
                self.result.problems.append(f"{budget.held_bytes} bytes of a budget were never given back")

    async def _settle(self) -> None:
        """Waits for the server, life after life; then for the devices."""
        while True:
            assert self._server is not None
            server = self._server
            await asyncio.wait({server})
            if server is not self._server or server.cancelled():
                await asyncio.sleep(1.0)  # it is away: another life comes
                continue
            error = server.exception()
            if error is None:
                self.result.outcome = "done"
                break
            if isinstance(error, StragglersError):
                self.result.outcome = "StragglersError"
                return
            if isinstance(error, UserError) and self.full_disks:
                self.full_disks -= 1
                self._serve()
                continue
            raise error
        async with asyncio.timeout(2_000.0):
            while self._away:
                await asyncio.wait(set(self._away))
            await asyncio.gather(*self._devices.values(), return_exceptions=True)

    def _serve(self) -> None:
        self._lives["server"] += 1
        options: dict[str, Any] = {
            "min_devices": len(self.world.data) + self._liar_gets_in,
            "resume": self._lives["server"] > 1,
            "life": f"life-{self._lives['server']}",
            "machines": self._machines,
        }

        async def serve() -> None:
            await serving.serve(self.world.run_inputs(self.out), self.world.fleet, NoProgress(), self, **options)

        self._server = asyncio.create_task(serve(), name="server")

    @property
    def _liar_gets_in(self) -> bool:
        return bool(self.plan.lie) and LIES[self.plan.lie].kind not in (Hello, Ready)

    def _lies(self, name: str) -> bool:
        return bool(self.plan.lie) and name == liar_of(self.plan.lie)

    def _join(self, name: str) -> None:
        self._lives[name] += 1
        data = self.world.data[next(iter(self.world.data)) if self._lies(name) else name]
        who = joining.Joining(name, str(data), self.plan.model, self.out.with_name(name))
        random = Random(f"{self.plan.seed} {name} {self._lives[name]}")

        async def join() -> None:
            _who.set(name)
            await joining.join(
                who,
                lambda: self._dial(name),
                random,
                lambda _: None,
                machines=self._machines,
                probe=lambda *_: Probed(2**30, 1e6),
            )

        self._devices[name] = asyncio.create_task(join(), name=name)
        self._devices[name].add_done_callback(self._parted)

    def _parted(self, task: asyncio.Task[None]) -> None:
        """A device may end because nobody is there any more, and for no other reason of its own; one that lies is told
        that it may not come in."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, JoinError) and self._lies(task.get_name()):
            return
        if error is not None and "expected an answer of the server" not in str(error):
            self.result.problems.append(
                f"device {task.get_name()}: " + "".join(traceback.format_exception(error))[-2000:]
            )

    def _machines(self, name: str, record: Recorder) -> ModelledMachine:
        fleet = self.world.fleet
        profile = next((device for device in fleet.devices if device.name == name), fleet.server)
        return ModelledMachine(name, profile.effective_flops, record)

    # -------------------------------------------------------------- the network (`serve.Door`, and `Dial`)

    async def open(self, hub: Hub) -> None:
        self._hub = hub

    async def close(self) -> None:
        self._hub = None
        for task, (_, carrier) in list(self._attending.items()):
            carrier.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def standing(self, device: str) -> None:
        """Everybody may stay."""

    async def _dial(self, name: str) -> Carrier:
        await asyncio.sleep(LATENCY_SECONDS)
        if self._hub is None:
            raise CarrierLost("connection: refused")
        mine, theirs = (FaultyCarrier(end, self.schedule) for end in modelled_carriers(LATENCY_SECONDS))
        task = asyncio.create_task(self._hub.attend(theirs, name), name=f"attends {name}")
        self._attending[task] = name, theirs
        task.add_done_callback(self._attended)
        self.result.recoveries["connections"] += 1
        return LyingCarrier(mine, LIES[self.plan.lie], self._lied) if self._lies(name) else mine

    def _lied(self) -> None:
        self.result.lies += 1

    def _attended(self, task: asyncio.Task[None]) -> None:
        del self._attending[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.result.problems.append("attend: " + "".join(traceback.format_exception(error))[-2000:])

    # -------------------------------------------------------------- what happens

    def _call(self, kind: str) -> Callable[[], None]:
        """Something that happens in the middle of sending a packet: a few turns of the loop later."""
        turns, away = self.random.choice((0, 1, 2, 5, 20, 100)), self.random.uniform(0.0, AWAY_SECONDS)
        name, silently = self.random.choice(FLEET["devices"])["name"], self.random.random() < 0.5

        async def happen() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await self._happen(kind, name, away, silently=silently)

        def begin() -> None:
            task = asyncio.create_task(happen(), name=kind)
            self._away.add(task)
            task.add_done_callback(self._happened)

        return begin

    def _happened(self, task: asyncio.Task[None]) -> None:
        self._away.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.result.problems.append("stage: " + "".join(traceback.format_exception(error))[-2000:])

    async def _happen(self, kind: str, name: str, away: float, *, silently: bool) -> None:
        if kind == "full disk":
            self.struck[kind] += 1
            self.full_disks += 1
            return
        if kind == "skewed clock":
            self.struck[kind] += 1
            self.clocks[name] = away / AWAY_SECONDS * 4
            return
        victim = self._server if kind == "crash server" else self._devices[name]
        if victim is None or victim.done() or victim in self._dying:
            return
        self._dying.add(victim)
        self.struck[kind] += 1
        if silently:  # nobody hears of it
            for who, carrier in self._attending.values():
                if kind == "crash server" or who == name:
                    carrier.fall_silent()
        victim.cancel()
        await asyncio.gather(victim, return_exceptions=True)
        await asyncio.sleep(away)
        if kind == "crash server":
            self._serve()
        elif self._devices[name] is victim:
            self._join(name)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = "".join(traceback.format_exception(error))[-2000:] if error else ""
        self.result.problems.append(f"{context['message']}: {told}")


# ------------------------------------------------------------------ what must hold


def _look(world: World, out: Path, result: Result) -> None:
    """Reads what the run left."""
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    rows = [json.loads(line) for line in lines]
    rounds = [row["round"] for row in rows]
    if result.outcome == "done" and rounds != list(range(ROUNDS)):
        result.problems.append(f"expected the rounds 0 to {ROUNDS - 1}, got {rounds}")
    if not (out / "checkpoint").exists():
        return
    state = json.loads((out / "checkpoint" / "state.json").read_text())["facts"]
    server, done = state["server"], state["run"]["rounds_done"]
    counted = Counter[str]()
    for row in rows[:done]:
        counted.update({name: device["samples"] for name, device in row["devices"].items()})
    cursors = {}
    for name in world.data:
        point = server["ledger"]["counted"].get(name)
        (kept,) = (out.with_name(name) / "state").iterdir()
        folder = kept / ("start" if point is None else f"after-{point:06}")
        cursors[name] = json.loads((folder / "state.json").read_text())["facts"]["device"]
        data = cursors[name]["data"]
        drawn_samples = data["epoch"] * world.rows + data["position"]
        if drawn_samples != counted[name]:
            result.problems.append(f"device {name}: {counted[name]} samples counted, {drawn_samples} drawn")
        result.facts[f"moments of {name}"] = sha256(folder / "tensors.safetensors")
    adapter = out / "adapter" / "adapter_model.safetensors"
    result.facts |= {
        "adapter": sha256(adapter) if adapter.exists() else "",
        "checkpoint": sha256(out / "checkpoint" / "tensors.safetensors"),
        "cursors": cursors,
        "counted": server["ledger"]["counted"],
        "folds held": server["folds"]["held"],
        "policies": state["method"],
        "history": [
            {"round": row["round"], "device": name}
            | {key: device[key] for key in ("steps", "samples", "weight", "loss", "late", "cut", "ranks")}
            for row in rows[:done]
            for name, device in row["devices"].items()
        ],
        "losses": [row.get("validation") for row in rows],
        "held out": [
            row["held_out"] and {key: row["held_out"][key] for key in ("metrics", "samples", "devices")} for row in rows
        ],
    }


def _compare(expected: dict[str, Any], result: Result) -> None:
    for key, value in expected.items():
        if result.facts.get(key) != value:
            result.problems.append(f"{key}: expected {value}, got {result.facts.get(key)}")


# ------------------------------------------------------------------ what a process shares, and counts


class _Noted(Session):
    """A session that the stage knows."""

    stage: _Stage

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stage.sessions.append(self)

    async def attach(self, carrier: Carrier, peer: Standing) -> None:
        self.counts["attached"] += 1
        await super().attach(carrier, peer)


def _patches(stage: _Stage) -> Iterator[Any]:
    """Patches of what is shared between the processes that one process plays: made small, or watched."""
    plan = stage.plan

    class Noted(_Noted):
        pass

    Noted.stage = stage

    def budget(most_bytes: int) -> Budget:
        stage.budgets.append(Budget(most_bytes))
        return stage.budgets[-1]

    def save(folder: Path, *args: Any, **how: Any) -> None:
        if stage.full_disks:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        save_checkpoint(folder, *args, **how)

    def skewed() -> float:
        return now() * (1.0 + stage.clocks.get(_who.get(), 0.0))

    save_checkpoint = running.save_checkpoint
    yield patch.object(own_link, "now", skewed)
    yield patch.object(hosting, "Session", Noted)
    yield patch.object(joining, "Session", Noted)
    yield patch.object(hosting, "Budget", budget)
    yield patch.object(joining, "Budget", budget)
    yield patch.object(running, "save_checkpoint", save)
    yield patch.object(hosting, "PieceServer", _pieces)
    yield patch.object(hosting, "fingerprint", _fingerprint)
    yield patch.object(joining, "fingerprint", _fingerprint)
    yield patch.object(joining, "Base", Base if plan.model else base)  # pieces are not all there when it is opened
    yield patch.object(joining, "cost_model", cost_model)
    yield patch.object(joining, "load_tokenizer", _tokenizer)
    yield patch.object(joining, "read_own_data", _own_data)
    yield patch.object(agent, "ECHO_BYTES", 1000)
    yield patch.object(session, "PIECE_BYTES", plan.piece_bytes)
    yield patch.object(hosting, "room_for_kept", lambda: plan.kept_bytes)
    yield patch.object(os, "fsync", lambda _: None)  # nothing is killed that the kernel would not outlive


_bases: dict[tuple[str, ModelSettings], Base] = {}


def base(settings: ModelSettings, *_where: object) -> Base:
    """The model of whoever asks, in the task of its name: as it is stored, whatever an earlier life folded."""
    task = asyncio.current_task()
    assert task is not None
    key = task.get_name(), settings
    if key not in _bases:
        _bases[key] = Base(settings)
    _bases[key].unfold()
    return _bases[key]


cost_model = cache(cost.cost_model)
_pieces = cache(PieceServer)
_fingerprint_at = cache(lambda location: fingerprint(ModelFiles(location)))
_tokenizer_at = cache(lambda location: load_tokenizer(ModelFiles(location)))


def _fingerprint(files: ModelFiles) -> Fingerprint:
    return _fingerprint_at(files.location)


def _tokenizer(files: ModelFiles) -> Any:
    return _tokenizer_at(files.location)


_data: dict[Any, Any] = {}


def _own_data(data: str, spec: Any, tokenizer: Any) -> Any:
    key = (data, repr(spec))
    if key not in _data:
        _data[key] = read_own_data(data, spec, tokenizer)
    return _data[key]
