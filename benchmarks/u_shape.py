"""The cost of labels at home in bytes and time, and how good the fronts of the three searches are at equal evaluations.

    python benchmarks/u_shape.py

The first table rehearses rounds (`run/rehearsed.py`): the real conversation on the virtual clock, of MiniLM on the
built-in reviews, five local steps, cuts by the method's own rule or, where it has none, after the second block; each
method with its labels on the server and on the devices, and gan_hfsl's shape with delays. "idle" is the part of the
round in which the devices do not compute.

The second is of `policies/pareto_search.py`, on plans of cut, share of a connection and clock: the hypervolume of what
each search has found, as a part of that of everything that was found on this fleet by anybody, the mean and the worst
of some seeds; and the seconds of a search.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cutlayer.config import MethodSection, read_config
from cutlayer.fleet.profile import Fleet, load_fleet
from cutlayer.methods.table import build_method
from cutlayer.policies.delay import delayed
from cutlayer.policies.labels import labels_on_devices
from cutlayer.policies.pareto import Tradeoff, found, tradeoff_of
from cutlayer.policies.pareto_search import SEARCHES, hypervolume, span_of
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.report.listing import Listing
from cutlayer.run.inputs import RunInputs, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from tables import publish

METHODS: dict[str, dict[str, Any]] = {"memsfl": {}, "splitlora": {"cut": 2}, "sl": {"cut": 2}, "hsfl": {}}
DELAYS = (0, 1, 2)
REFERENCE = np.array([1.1, 1.1])


@dataclass(frozen=True, slots=True)
class Round:
    """A round of one method, with labels on the server or on the devices."""

    fleet: str
    method: str
    labels: str
    seconds: float
    up_bytes: int
    down_bytes: int
    idle: float


@dataclass(frozen=True, slots=True)
class Quality:
    """One search on one fleet with so many evaluations, over seeds."""

    fleet: str
    search: str
    evaluations: int
    mean: float
    worst: float
    seconds: float


class Bench:
    """The model and the data, which are the same in every round."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self._inputs = prepare(read_config(None, (*overrides, "train.rounds=1")))

    def on(self, fleet: Fleet, method: str, options: dict[str, Any]) -> tuple[RunInputs, Situation]:
        """The run of a method on a fleet, whose devices' data is nobody's: none is read."""
        section = MethodSection.model_validate({"name": method, **options})
        config = self._inputs.config.model_copy(update={"method": section})
        inputs = replace(self._inputs, config=config, fleet=fleet, parts=[[0]] * len(fleet.devices))
        return inputs, situation_of(inputs, Logbook())

    def played(self, fleet: Fleet, name: str, options: dict[str, Any], shown: str, labels: str) -> Round:
        """A round on the virtual clock."""
        inputs, situation = self.on(fleet, name, options)
        method = build_method(name, options, seed=0)
        plan = method.make_plan(0, situation)
        done = rehearse(inputs, method, plan, situation.num_tokens)
        busy = []
        for device in plan.devices:
            cost = situation.costs.device(device, device.batch_size, situation.num_tokens)
            speed = situation.profile(device.device).effective_flops
            busy.append(device.local_steps * (cost.forward_flops + cost.backward_flops) / speed)
        idle = 1 - fmean(busy) / done.seconds
        return Round(fleet.name, shown, labels, done.seconds, done.bytes_up, done.bytes_down, idle)

    def rounds(self, fleet: Fleet) -> Iterator[Round]:
        """Each method, twice; then the U-shape with delays."""
        for name, options in METHODS.items():
            for labels in ("server", "device"):
                yield self.played(fleet, name, {**options, "labels": labels}, name, labels)
        for delay in DELAYS:
            yield self.played(fleet, "gan_hfsl", {"cut": 2, "delay": delay}, f"gan_hfsl, delay {delay}", "device")

    def tradeoff(self, fleet: Fleet) -> Tradeoff:
        """The tradeoff between plans of the fleet."""
        _, situation = self.on(fleet, "gan_hfsl", {})
        return tradeoff_of(make_plan((everyone(), labels_on_devices(), delayed(1)), 0, situation), situation)


def qualities(fleet: Fleet, tradeoff: Tradeoff, evaluations: Sequence[int], seeds: int) -> Iterator[Quality]:
    """Each search with each number of evaluations."""
    points, took = {}, {}
    for search in SEARCHES:
        for number in evaluations:
            for seed in range(seeds):
                began = time.perf_counter()
                _, points[search, number, seed] = found(tradeoff, search, number, seed)
                took[search, number, seed] = time.perf_counter() - began
    known = np.concatenate(list(points.values()))
    low, width = span_of(known)
    whole = hypervolume((known - low) / width, REFERENCE)
    for search in SEARCHES:
        for number in evaluations:
            runs = [(search, number, seed) for seed in range(seeds)]
            areas = [hypervolume((points[run] - low) / width, REFERENCE) / whole for run in runs]
            yield Quality(fleet.name, search, number, fmean(areas), min(areas), fmean(took[run] for run in runs))


def table_of_rounds(rows: Sequence[Round]) -> Listing:
    """One row per method and place of the labels."""
    table = Listing(title="A round with labels on the server and on the devices")
    for heading in ("fleet", "method", "labels", "seconds", "up MB", "down MB", "idle"):
        table.add_column(heading)
    for row in rows:
        sent = (f"{num / 1e6:.2f}" for num in (row.up_bytes, row.down_bytes))
        table.add_row(row.fleet, row.method, row.labels, f"{row.seconds:.2f}", *sent, f"{row.idle:.0%}")
    return table


def table_of_qualities(rows: Sequence[Quality]) -> Listing:
    """One row per fleet, search and number of evaluations."""
    table = Listing(title="Hypervolume at equal evaluations, as a part of all that was found")
    for heading in ("fleet", "search", "evaluations", "mean", "worst", "seconds"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row.fleet, row.search, str(row.evaluations), f"{row.mean:.4f}", f"{row.worst:.4f}", f"{row.seconds:.2f}"
        )
    return table


def shared(fleet: Fleet, mbit: float) -> Fleet:
    """The fleet with a connection of the server that its devices share."""
    server = fleet.server.model_copy(update={"up_bits_per_second": 1e6 * mbit, "down_bits_per_second": 1e6 * mbit})
    return fleet.model_copy(update={"name": f"{fleet.name}, {mbit:g} Mbit/s for all", "server": server})


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="builtin:minilm")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--devices", type=int, default=20, help="of jetson-80")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/u_shape.json"))
    args = parser.parse_args(arguments)
    bench = Bench((f"model.name={args.model}", f"data.max_length={args.max_length}"))
    six, jetsons = load_fleet("memsfl-six"), load_fleet("jetson-80")
    jetsons = jetsons.model_copy(
        update={
            "name": f"{args.devices} of jetson-80",
            "devices": jetsons.devices[:: 80 // args.devices][: args.devices],
        }
    )
    rounds = [row for fleet in (six, jetsons) for row in bench.rounds(fleet)]
    fleets = (six, shared(six, 300), shared(jetsons, 1000))
    fronts = [row for one in fleets for row in qualities(one, bench.tradeoff(one), args.evaluations, args.seeds)]
    publish(
        [table_of_rounds(rounds), table_of_qualities(fronts)],
        args.json,
        {"model": args.model, "max_length": args.max_length, "seeds": args.seeds},
        {"rounds": [asdict(row) for row in rounds], "fronts": [asdict(row) for row in fronts]},
    )


if __name__ == "__main__":
    main()
