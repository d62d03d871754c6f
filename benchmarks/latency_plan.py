"""Round time of cuts chosen by latency, against uniform cuts, cuts by memory, and the best cuts that there are.

    python benchmarks/latency_plan.py

Rounds are rehearsed (`run/rehearsed.py`): the real conversation on the virtual clock, with the batches that a plan
reckons with, of MiniLM on the built-in reviews, five local steps, SFL-V1's server, which serves devices as they come.
"reckoned" is what `latency_of` says of the cuts, "clock" what the rehearsal took, "planning" the wall time of the
planner on this machine.

Fleets: memsfl-six as it is; memsfl-six whose devices lend any number of blocks, with a sixteenth of the server (other
tenants); jetson-80; and both again with a connection of the server that is narrower than the devices' links together
(and planned shares of it, where they are better or worse than equal ones).

The second table is of small random fleets, where every combination of cuts can be rehearsed: device speeds log-uniform
over 0.1 to 3 TFLOP/s, links over 20 to 200 Mbit/s, a server of 0.3 to 30 TFLOP/s, and in half of them a connection of
half to all of what the links have together. "over the best" is the time on the clock over that of the best combination.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cutlayer.config import read_config
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile, load_fleet
from cutlayer.methods.table import build_method
from cutlayer.policies.cut import cut_at, cut_by_memory
from cutlayer.policies.latency_plan import cut_by_latency, latency_of
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.report.listing import Listing
from cutlayer.run.inputs import RunInputs, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from cutlayer.types import RoundPlan
from tables import publish

METHOD = "sfl_v1"
DEVICES = 3
"""Size of a random fleet: every combination of six cuts is 216 rounds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One rule on one fleet. `planned_shares_seconds` is None where devices share no connection."""

    fleet: str
    cuts: str
    num_blocks: int
    reckoned_seconds: float
    clock_seconds: float
    planned_shares_seconds: float | None
    planning_seconds: float


@dataclass(frozen=True, slots=True)
class Regret:
    """One random fleet: what each rule takes on the clock, over the best of all cuts, and what it was reckoned to."""

    shared: bool
    latency: float
    memory: float
    best_uniform: float
    reckoned: float


class Bench:
    """The model, the data and the method, which are the same in every round that is rehearsed."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self._inputs = prepare(read_config(None, (*overrides, f"method.name={METHOD}", "train.rounds=1")))
        self._method = build_method(METHOD, {}, seed=0)

    def on(self, fleet: Fleet) -> tuple[RunInputs, Situation]:
        """The run on another fleet, whose devices' data is nobody's: none is read."""
        inputs = replace(self._inputs, fleet=fleet, parts=[[0]] * len(fleet.devices))
        return inputs, situation_of(inputs, Logbook())

    def clock(self, inputs: RunInputs, situation: Situation, plan: RoundPlan, *, planned: bool = False) -> float:
        """Seconds of a round on the virtual clock, with equal shares of the connection or with planned ones."""
        shares = latency_of(plan, situation).bandwidth_shares if planned else {}
        return rehearse(inputs, self._method, plan, situation.num_tokens, shares).seconds

    def rows(self, fleet: Fleet) -> Iterator[Row]:
        """Each rule on a fleet."""
        inputs, situation = self.on(fleet)
        most = min(d.max_blocks or situation.costs.num_blocks for d in fleet.devices)
        rules: dict[str, Planner] = {f"{cut} on every device": cut_at(cut) for cut in range(1, most + 1)}
        for name, rule in (rules | {"by memory": cut_by_memory(), "by latency": cut_by_latency()}).items():
            everybody = make_plan((everyone(),), 0, situation)
            began = time.perf_counter()
            plan = rule(everybody, situation)
            took, reckoned = time.perf_counter() - began, latency_of(plan, situation)
            yield Row(
                fleet.name,
                name,
                sum(device.cut for device in plan.devices),
                reckoned.seconds,
                self.clock(inputs, situation, plan),
                self.clock(inputs, situation, plan, planned=True) if reckoned.bandwidth_shares else None,
                took,
            )

    def regret(self, fleet: Fleet) -> Regret:
        """Each rule on a small fleet, over the best of all cuts."""
        inputs, situation = self.on(fleet)
        everybody, blocks = make_plan((everyone(),), 0, situation), situation.costs.num_blocks
        clock: dict[tuple[int, ...], float] = {}
        for cuts in itertools.product(range(1, blocks + 1), repeat=len(fleet.devices)):
            devices = tuple(replace(d, cut=cut) for d, cut in zip(everybody.devices, cuts, strict=True))
            clock[cuts] = self.clock(inputs, situation, replace(everybody, devices=devices))
        best = min(clock.values())

        def of(rule: Planner) -> float:
            return clock[tuple(device.cut for device in rule(everybody, situation).devices)] / best

        chosen = cut_by_latency()(everybody, situation)
        return Regret(
            shared=fleet.server.up_bits_per_second is not None,
            latency=of(cut_by_latency()),
            memory=of(cut_by_memory()),
            best_uniform=min(of(cut_at(cut)) for cut in range(1, blocks + 1)),
            reckoned=latency_of(chosen, situation).seconds / (of(cut_by_latency()) * best),
        )


def with_server(fleet: Fleet, name: str, *, slowdown: float = 1.0, mbit: float | None = None) -> Fleet:
    """The fleet with a part of its server, and a connection of it both ways; devices lend any number of blocks."""
    rate = None if mbit is None else mbit * 1e6
    changes = {"up_bits_per_second": rate, "down_bits_per_second": rate}
    server = fleet.server.model_copy(update={"flops_per_second": fleet.server.flops_per_second / slowdown, **changes})
    devices = tuple(device.model_copy(update={"max_blocks": None}) for device in fleet.devices)
    return fleet.model_copy(update={"name": name, "server": server, "devices": devices})


def fleets(num_jetsons: int) -> list[Fleet]:
    """The fleets of the first table."""
    six, jetsons = load_fleet("memsfl-six"), load_fleet("jetson-80")
    jetsons = jetsons.model_copy(update={"devices": jetsons.devices[-num_jetsons:]})
    return [
        six,
        with_server(six, "memsfl-six, any cut, server / 16", slowdown=16),
        with_server(six, "the same, 300 Mbit/s for all", slowdown=16, mbit=300),
        jetsons,
        with_server(jetsons, f"jetson-80, {5 * num_jetsons} Mbit/s for all", mbit=5 * num_jetsons),
    ]


def random_fleet(seed: int) -> Fleet:
    """A small fleet in which any of compute, links, the server and its connection may be what holds up a round."""
    draw = np.random.default_rng(seed)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(draw.uniform(np.log(low), np.log(high))))

    devices = tuple(
        DeviceProfile(
            name=f"device-{index}",
            flops_per_second=log_uniform(0.1e12, 3e12),
            efficiency=0.3,
            memory_bytes=2**34,
            up_bits_per_second=log_uniform(20e6, 200e6),
            down_bits_per_second=log_uniform(20e6, 200e6),
            latency_seconds=0.005,
        )
        for index in range(DEVICES)
    )
    part = draw.uniform(0.5, 1.0)
    server = ServerProfile(flops_per_second=log_uniform(0.3e12, 30e12), efficiency=0.3, memory_bytes=2**34)
    if seed % 2:
        up, down = (sum(getattr(d, f"{way}_bits_per_second") for d in devices) * part for way in ("up", "down"))
        server = server.model_copy(update={"up_bits_per_second": up, "down_bits_per_second": down})
    return Fleet(name=f"random {seed}", source="made up", server=server, devices=devices)


def rules_table(rows: Sequence[Row]) -> Listing:
    """The first table: ratios to cuts by memory."""
    result = Listing(title="seconds of a round, and on the clock over cuts by memory")
    result.add_column("fleet")
    result.add_column("cuts")
    for heading in ("blocks", "reckoned", "clock", "over reckoned", "over memory", "planned shares", "planning"):
        result.add_column(heading, justify="right")
    for name, group in itertools.groupby(rows, key=lambda row: row.fleet):
        of_fleet = list(group)
        memory = next(row.clock_seconds for row in of_fleet if row.cuts == "by memory")
        result.add_section()
        for number, row in enumerate(of_fleet):
            planned = row.planned_shares_seconds
            result.add_row(
                "" if number else name,
                row.cuts,
                str(row.num_blocks),
                f"{row.reckoned_seconds:.3f}",
                f"{row.clock_seconds:.3f}",
                f"{row.clock_seconds / row.reckoned_seconds:.3f}",
                f"{row.clock_seconds / memory:.3f}",
                "" if planned is None else f"{planned / row.clock_seconds:.3f}",
                f"{row.planning_seconds * 1e3:.0f} ms",
            )
    return result


def regrets_table(regrets: Sequence[Regret]) -> Listing:
    """The second table: over the best cuts."""
    result = Listing(title=f"random fleets of {DEVICES}: clock over the best of all cuts, mean (worst)")
    columns: dict[str, Callable[[Regret], float]] = {
        "by latency": lambda one: one.latency,
        "by memory": lambda one: one.memory,
        "best uniform": lambda one: one.best_uniform,
        "reckoned over clock": lambda one: one.reckoned,
    }
    for heading in ("connection", "fleets", *columns):
        result.add_column(heading, justify="right")
    for shared in (False, True):
        some = [one for one in regrets if one.shared == shared]
        if some:
            values = [[value(one) for one in some] for value in columns.values()]
            cells = [f"{statistics.mean(column):.3f} ({max(column):.3f})" for column in values]
            result.add_row("shared" if shared else "own links", str(len(some)), *cells)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fleets", type=int, default=20, help="number of random fleets")
    parser.add_argument("--seed", type=int, default=0, help="of the first random fleet")
    parser.add_argument("--jetsons", type=int, default=80, help="devices of jetson-80, from its end")
    parser.add_argument("--model", default="builtin:minilm", help="a model for classification")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of every text")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/latency_plan.json"))
    args = parser.parse_args(arguments)

    run = {
        "model.name": args.model,
        "data.path": "builtin:reviews",
        "data.max_length": args.max_length,
        "train.local_steps": 5,
        "train.batch_size": 8,
    }
    bench = Bench([f"{name}={value}" for name, value in run.items()])
    rows = [row for fleet in fleets(args.jetsons) for row in bench.rows(fleet)]
    regrets = [bench.regret(random_fleet(args.seed + index)) for index in range(args.fleets)]
    settings = run | {"fleets": args.fleets, "seed": args.seed, "jetsons": args.jetsons}
    publish(
        [rules_table(rows), regrets_table(regrets)],
        args.json,
        settings,
        {"rules": [asdict(row) for row in rows], "regrets": [asdict(one) for one in regrets]},
    )


if __name__ == "__main__":
    main()
