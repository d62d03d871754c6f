"""The cost of splitting: tokens per second of a split run over those of a plain transformers + PEFT loop.

    python benchmarks/overhead.py

The split run is the product's own path with everything in this process: `rounds.split` with a Device, a Server, its
queue and forecast, on modelled machines and links, where time is counted and not slept. One device, one round
after the other, `--steps` local steps in each. It is held against two loops (`jobs.PlainLoop`) on the same padded
batches from the same adapter: one with torch's default AdamW, one with the fused AdamW that cutlayer uses.

Each model has a fresh process with one thread, in which blocks of steps alternate: peft, peft fused, split, split,
peft fused, peft, and so on. Neighbours in time share whatever else the machine is doing, so their ratio is steadier
than that of separate processes. Medians over pairs of blocks. Processor time is what to trust on a busy machine.

That split and peft fused compute the same is checked: their losses are equal to the end. (Where a product of few rows
is summed in another order than one of many, the losses differ in their last bits: logits are made of learned positions
only, docs/decisions/0038.) `smollm2-random` has the shape of SmolLM2-135M, random weights, and its cost per step.
The second table is the adapter swap on one base: `Part.use` and PEFT's `set_adapter`, 8 blocks of GPT-2 small.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import torch

from cutlayer.device.talks.split import SHAPE
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.link import modelled_link
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import CostModel
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.order import longest_tail
from cutlayer.report.listing import Listing
from cutlayer.rounds.split import split
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.types import Batch, DevicePlan, RoundPlan
from cutlayer.wire.messages import Finish
from jobs import JOBS, Job, PlainLoop, load_adapter, plain_model, random_batches
from models import model_folder
from simulated import RUN, equal_fleet, forget, make_device, make_server
from tables import in_fresh_process, publish, require_device

TARGET = 0.97
PLAIN = ("peft", "peft fused")
CONTENDERS = (*PLAIN, "split")
SWAPS = 300
STEPS = {"gpt2": 2, "llama-1b": 5, "minilm": 5, "nano": 10, "smollm2-nano": 2, "smollm2-random": 2, "tiny": 10}
"""Steps in a turn, by model: some seconds of them, so that turns are neighbours in time."""


@dataclass(frozen=True, slots=True)
class Block:
    """One contender's turn: what its steps took, and their mean loss."""

    wall_seconds: float
    cpu_seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Row:
    """Split beside one plain loop, on one model.

    Milliseconds are medians per batch. Ratios are tokens per second of split over the loop's: the median pair, and
    for processor time the quartiles. `same_losses` is about all blocks, and expected of the fused loop.
    """

    model: str
    against: str
    plain_wall_ms: float
    split_wall_ms: float
    wall_ratio: float
    plain_cpu_ms: float
    split_cpu_ms: float
    cpu_ratio: float
    cpu_ratio_quartiles: tuple[float, float]
    split_tokens_per_second: float
    same_losses: bool


class SplitRun:
    """A run with one device, held round by round: `async with` it on the virtual clock."""

    def __init__(self, job: Job, batches: list[Batch], device: str) -> None:
        fleet, base = equal_fleet(1), Base(job.settings, device)
        costs = CostModel(job.settings).of(SHAPE.flow)
        self.server = make_server(job, base, costs, fleet)
        self._profile, self._rounds = fleet.devices[0], 0
        self._device = make_device(self._profile, base, costs, batches)
        self._plan = DevicePlan(self._profile.name, job.cut, job.num_samples, local_steps=len(batches))
        self._round = split(server_step=one_device_at_a_time(longest_tail()))
        self._aggregate = mean_per_block()

    async def __aenter__(self) -> SplitRun:
        device_end, self._link = modelled_link(self._profile, forget)
        self._task = asyncio.create_task(self._device.converse(device_end))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            await self._link.send(Finish(RUN, self._rounds, "measured"))
            await self._task

    async def round(self) -> float:
        """One round over all batches, from its plan to its aggregate; returns the mean loss."""
        plan = RoundPlan(self._rounds, (self._plan,))
        contributions = await self._round.server_end(self.server, {self._profile.name: self._link}, plan)
        self.server.adapter = self._aggregate(self.server.adapter, contributions, plan)
        self._rounds += 1
        return self.server.ledger.take_tallies()[self._profile.name].loss


def measure(job: Job, pairs: int, steps: int, device: str) -> list[Row]:
    """All contenders on one job, in turns; the first turn of each warms up."""
    torch.set_num_threads(1)
    return run_virtual(_take_turns(job, random_batches(job, steps), pairs, device))


async def _take_turns(job: Job, batches: list[Batch], pairs: int, device: str) -> list[Row]:
    async with SplitRun(job, batches, device) as run:
        turns: dict[str, Callable[[], Awaitable[float]]] = {"split": run.round}
        for name in PLAIN:
            loop = PlainLoop(job, batches, fused=name == "peft fused", device=device)
            load_adapter(loop.model, run.server.adapter)
            turns[name] = _as_round(loop, batches)
        took: dict[str, list[Block]] = {name: [] for name in CONTENDERS}
        for pair in range(pairs + 1):
            for name in CONTENDERS if pair % 2 else reversed(CONTENDERS):
                took[name].append(await _timed(turns[name], device))
    return [_row(job, name, took[name], took["split"], len(batches)) for name in PLAIN]


def _as_round(loop: PlainLoop, batches: list[Batch]) -> Callable[[], Awaitable[float]]:
    """The plain loop over all batches, with the mean loss as a split round has it."""

    async def round() -> float:
        total = sum(loop.step() * batch.weight for batch in batches)
        return total / sum(batch.weight for batch in batches)

    return round


async def _timed(turn: Callable[[], Awaitable[float]], device: str) -> Block:
    _wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    loss = await turn()
    _wait_for(device)
    return Block(time.perf_counter() - wall, time.process_time() - cpu, loss)


def _wait_for(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _row(job: Job, name: str, plain: Sequence[Block], ours: Sequence[Block], steps: int) -> Row:
    def ms(seconds: list[float]) -> float:
        return 1e3 * statistics.median(seconds) / steps

    pairs = list(zip(plain[1:], ours[1:], strict=True))
    cpu_ratios = sorted(a.cpu_seconds / b.cpu_seconds for a, b in pairs)
    split_wall_ms = ms([b.wall_seconds for _, b in pairs])
    return Row(
        model=job.model,
        against=name,
        plain_wall_ms=ms([a.wall_seconds for a, _ in pairs]),
        split_wall_ms=split_wall_ms,
        wall_ratio=statistics.median(a.wall_seconds / b.wall_seconds for a, b in pairs),
        plain_cpu_ms=ms([a.cpu_seconds for a, _ in pairs]),
        split_cpu_ms=ms([b.cpu_seconds for _, b in pairs]),
        cpu_ratio=statistics.median(cpu_ratios),
        cpu_ratio_quartiles=(cpu_ratios[len(pairs) // 4], cpu_ratios[(3 * len(pairs)) // 4]),
        split_tokens_per_second=job.num_samples * job.num_tokens / split_wall_ms * 1e3,
        same_losses=[a.loss for a in plain] == [b.loss for b in ours],
    )


def swap_microseconds(job: Job) -> dict[str, float]:
    """Medians of one swap between two adapters on all attention projections of the last 8 blocks."""
    torch.set_num_threads(1)
    job = replace(job, lora=LoraSettings())
    base = Base(job.settings)
    first = max(0, base.num_blocks - 8)
    part = base.server_part(first)
    adapters = [base.initial_adapter(seed) for seed in range(2)]
    owners = [{name: torch.nn.Parameter(value) for name, value in adapter.items()} for adapter in adapters]
    model = plain_model(job, layers=list(range(first, base.num_blocks)))
    model.add_adapter("other", model.peft_config["default"])
    return {
        "Part.use": _median_microseconds([lambda: part.use(owners[0]), lambda: part.use(owners[1])]),
        "peft set_adapter": _median_microseconds(
            [lambda: model.set_adapter("other"), lambda: model.set_adapter("default")]
        ),
    }


def _median_microseconds(calls: Sequence[Callable[[], None]]) -> float:
    seconds = []
    for index in range(SWAPS):
        start = time.process_time()
        calls[index % len(calls)]()
        seconds.append(time.process_time() - start)
    return 1e6 * statistics.median(seconds)


def table(rows: Sequence[Row]) -> Listing:
    """The rows as a person reads them."""
    result = Listing(title=f"tokens/s of split over plain PEFT (aim: at least {TARGET}), ms per batch: split/plain")
    for heading in ("model", "against"):
        result.add_column(heading)
    for heading in ("cpu ms", "ratio", "quartiles", "wall ms", "ratio", "tokens/s", "losses"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            row.model,
            row.against,
            f"{row.split_cpu_ms:.1f}/{row.plain_cpu_ms:.1f}",
            f"{row.cpu_ratio:.3f}",
            "{:.3f} {:.3f}".format(*row.cpu_ratio_quartiles),
            f"{row.split_wall_ms:.0f}/{row.plain_wall_ms:.0f}",
            f"{row.wall_ratio:.3f}",
            f"{row.split_tokens_per_second:.0f}",
            "equal" if row.same_losses else "differ",
        )
    return result


def swap_table(microseconds: Mapping[str, float]) -> Listing:
    """The swap's microseconds."""
    result = Listing(title="adapter swap, 8 blocks: cpu microseconds")
    for name in microseconds:
        result.add_column(name, justify="right")
    result.add_row(*(f"{value:.0f}" for value in microseconds.values()))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=JOBS, help="default: gpt2 minilm nano smollm2-random; on cuda gpt2 llama-1b"
    )
    parser.add_argument("--swap-model", choices=("gpt2", "tiny"), default="gpt2", help="for the adapter swap")
    parser.add_argument("--pairs", type=int, default=12, help="turns of each contender, after one that warms up")
    parser.add_argument("--steps", type=int, help=f"steps in a turn; default: {STEPS}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/overhead.json"))
    args = parser.parse_args(arguments)
    require_device(args.device)
    on_cpu = args.device == "cpu"
    names = args.models or (["gpt2", "minilm", "nano", "smollm2-random"] if on_cpu else ["gpt2", "llama-1b"])
    for name in [*names, args.swap_model]:
        model_folder(name)
    rows = []
    for name in names:
        rows += in_fresh_process(measure, JOBS[name], args.pairs, args.steps or STEPS[name], args.device)
    swap = in_fresh_process(swap_microseconds, JOBS[args.swap_model])
    settings = {"pairs": args.pairs, "steps": args.steps or STEPS, "device": args.device}
    publish([table(rows), swap_table(swap)], args.json, settings, {"models": [asdict(r) for r in rows], "swap": swap})


if __name__ == "__main__":
    main()
