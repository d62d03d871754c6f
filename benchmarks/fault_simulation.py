"""Faults, tried and counted: the real server and real devices, over a modelled network on the virtual clock.

    python benchmarks/faults.py simulate --seeds 2000

Each seed draws a setting (a method, a policy for stragglers), faults and when they strike, and plays one run
(`faulty_runs.py`). Whatever happens, the run ends; its rounds are complete; each sample that was drawn counted once.
Where every device is waited for, adapter, checkpoint and places in the data are, bit for bit, those of the run to which
nothing happened. A seed of which this does not hold is printed: `--start SEED --seeds 1` plays it again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch

from cutlayer.report.listing import Listing
from faulty_runs import World, drawn_plan, play, write_inputs
from tables import publish

METHODS = ("memsfl", "splitfrozen", "fedlora", "sl", "flora")
POLICIES: tuple[dict[str, Any], ...] = (
    *({},) * 3,
    {"train.stragglers": "deadline:10"},
    {"train.stragglers": "deadline:10", "train.late": "use"},
    {"train.stragglers": "quorum:0.5"},
    {"train.stragglers": "quorum:0.5", "train.late": "use"},
    {"wire.activations": "int8", "wire.adapters": "topk:0.25"},
    {"wire.activations": "int8", "wire.adapters": "topk:0.25", "train.stragglers": "deadline:10", "train.late": "use"},
)
"""And what is packed: what packing lost goes with a device's commit points."""
TOGETHER = ("sl",)
"""Methods in which devices wait for each other, so that there is no quorum."""
IN_PARTS = ("memsfl", "sl")
"""Methods in which a batch may go in micro-batches."""
HOLDING_OUT: dict[str, Any] = {"data.hold_out": 0.3, "train.eval_every": 1}
"""Devices judge the adapter before the first round and after each."""
SHOWN = {"train.micro_batches": "in parts", "data.hold_out": "holding out", "train.eval_every": "every round"}
CHUNK = 25
"""Seeds that a process takes at a time."""


def _counters() -> dict[str, Counter[str]]:
    return defaultdict(Counter)


@dataclass
class Counts:
    """Outcomes of many runs, counted.

    Attributes:
      runs: by setting, how they ended.
      faults: that struck, by method and kind.
      recoveries: by what was done.
      failures: seed -> what must not be.
      packets, seconds: of all runs, on the virtual clock.
    """

    runs: dict[str, Counter[str]] = field(default_factory=_counters)
    faults: dict[str, Counter[str]] = field(default_factory=_counters)
    recoveries: Counter[str] = field(default_factory=Counter)
    failures: dict[int, list[str]] = field(default_factory=dict)
    packets: int = 0
    seconds: float = 0.0

    def add(self, other: Counts) -> None:
        for name, outcomes in other.runs.items():
            self.runs[name].update(outcomes)
        for method, kinds in other.faults.items():
            self.faults[method].update(kinds)
        self.recoveries.update(other.recoveries)
        self.failures |= other.failures
        self.packets += other.packets
        self.seconds += other.seconds


def setting(seed: int, methods: Sequence[str]) -> dict[str, Any]:
    """Keys of the config for a seed: what it trains, and how long its rounds wait."""
    random = Random(f"setting {seed}")
    method = methods[seed % len(methods)]
    policies = [policy for policy in POLICIES if method not in TOGETHER or "quorum" not in str(policy)]
    chosen = {"method.name": method, **random.choice(policies)}
    chosen |= {"train.micro_batches": 2} if method in IN_PARTS and random.random() < 0.5 else {}
    return chosen | (HOLDING_OUT if random.random() < 0.25 else {})


class Campaign:
    """Plays seeds in this process.

    Args:
      folder: Where runs are; nothing of them is left.
      methods: Among whom seeds choose.
    """

    def __init__(self, folder: Path, methods: Sequence[str] = METHODS) -> None:
        self._folder, self._methods = folder, methods
        self._inputs = write_inputs(folder / "inputs")
        self._worlds: dict[str, World] = {}

    def play(self, seeds: Iterable[int]) -> Counts:
        """A run for each."""
        counts = Counts()
        for seed in seeds:
            values = setting(seed, self._methods)
            name, world = self._world(values)
            result = play(world, drawn_plan(seed, world.reference.packets))
            counts.runs[name][result.outcome] += 1
            counts.faults[values["method.name"]].update(result.faults)
            counts.recoveries.update(result.recoveries)
            counts.packets += result.packets
            counts.seconds += result.seconds
            if result.problems:
                counts.failures[seed] = [name, *result.problems]
        return counts

    def _world(self, values: dict[str, Any]) -> tuple[str, World]:
        name = " ".join(SHOWN.get(key, str(value)) for key, value in values.items())
        if name not in self._worlds:
            scratch = self._folder / name.replace(":", "-").replace(" ", "-")
            scratch.mkdir()
            self._worlds[name] = World(values, self._inputs, scratch)
        return name, self._worlds[name]


_campaign: Campaign | None = None


def _begin(folder: Path, methods: Sequence[str]) -> None:
    """Prepares a new process of the pool."""
    global _campaign
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # asyncio's, of tasks that a crash ends
    own = folder / str(os.getpid())
    own.mkdir()
    _campaign = Campaign(own, methods)


def _play(seeds: range) -> Counts:
    assert _campaign is not None
    return _campaign.play(seeds)


def simulate(seeds: range, methods: Sequence[str], jobs: int) -> Counts:
    """Plays these seeds in so many processes; says how far it is."""
    counts, begun = Counts(), time.perf_counter()
    chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="cutlayer-faults-", dir=memory if memory.is_dir() else None) as folder,
        ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(Path(folder), methods)
        ) as pool,
    ):
        done = 0
        for chunk, part in zip(chunks, pool.map(_play, chunks), strict=True):
            counts.add(part)
            done += len(chunk)
            seconds = time.perf_counter() - begun
            print(f"{done} of {len(seeds)} seeds, {len(counts.failures)} failed, {seconds:.0f} s", flush=True)
            for seed, problems in part.failures.items():
                print(f"seed {seed}:", *problems, sep="\n  ", flush=True)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays, prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--method", action="append", choices=METHODS, help="one of several; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/faults.json"))
    chosen = parser.parse_args(arguments)
    methods = tuple(chosen.method or METHODS)
    begun = time.perf_counter()
    counts = simulate(range(chosen.start, chosen.start + chosen.seeds), methods, chosen.jobs)
    seconds = time.perf_counter() - begun
    settings = {"seeds": chosen.seeds, "start": chosen.start, "methods": methods}
    rows = {**vars(counts), "failures": {str(seed): told for seed, told in counts.failures.items()}}
    publish(_tables(counts, chosen.seeds, seconds), chosen.json, settings, {**rows, "wall_seconds": seconds})
    if counts.failures:
        sys.exit(1)


def _tables(counts: Counts, seeds: int, seconds: float) -> list[Listing]:
    played = f"{seeds:,} seeds in {seconds:.0f} s: {counts.packets:,} packets, {counts.seconds / 3600:.1f} h of fleet"
    runs = Listing("setting", "runs", "how they ended", title=played)
    for name, outcomes in sorted(counts.runs.items()):
        ends = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        runs.add_row(name, str(outcomes.total()), ends)
    methods = sorted(counts.faults)
    faults = Listing("fault", *methods, "in all")
    for kind, count in sum(counts.faults.values(), Counter[str]()).most_common():
        faults.add_row(kind, *(str(counts.faults[method][kind]) for method in methods), str(count))
    struck = [counts.faults[method].total() for method in methods]
    faults.add_row("in all", *map(str, struck), str(sum(struck)))
    recoveries = Listing("recovery", "times")
    for what, count in counts.recoveries.most_common():
        recoveries.add_row(what, str(count))
    failures = Listing("failed", "seeds")
    failures.add_row(str(len(counts.failures)), ", ".join(map(str, counts.failures)) or "none")
    return [runs, faults, recoveries, failures]


if __name__ == "__main__":
    main()
