"""Virtual time of one training step under every order policy, over the optimum.

    python benchmarks/schedule.py --fleets 200 --seed 0 --json benchmarks/results/schedule.json

A step: every device runs its blocks forward and uploads the activations, the server serves the devices one
at a time, each downloads its gradient and runs backward; the step ends with the last device. All start together.
The optimum is `carlier` on true times, proven for every instance unless the last line of the output says otherwise.

Costs are analytic and BERT-base-like: a forward pass of a block on B x T tokens of width H takes
B T (24 H^2 + 4 T H + 16 H r) FLOPs: linear layers, attention, rank-r LoRA on the four attention projections.
A backward pass takes `--backward` times that, by default 1: the weights are frozen, so there is one matrix
product, for the input's gradient, where full training has two. Links carry fp32, as many bytes down as up.

Instances: `memsfl-six` with its server at full, a quarter and a sixteenth of its speed (other tenants); and
random fleets of 4 to 16 devices: effective speeds log-uniform over 0.1 to 2 TFLOP/s, cuts 1 to 3, up and down
rates log-uniform over 20 to 200 Mbit/s, the server's speed such that serving all devices once takes 1/4 to 4
times as long as the mean device's own part of the step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from cutlayer.files import write_atomically
from cutlayer.fleet.profile import DeviceProfile, Fleet, load_fleet
from cutlayer.policies.order import ORDERS, Job, Order, carlier, order_by_name, simulate
from cutlayer.report.listing import Listing
from cutlayer.state import State
from tables import terminal

HIDDEN, NUM_BLOCKS, BATCH, TOKENS, RANK = 768, 12, 16, 128, 16
BLOCK_FLOPS = BATCH * TOKENS * (24 * HIDDEN**2 + 4 * TOKENS * HIDDEN + 16 * HIDDEN * RANK)
ACTIVATION_BITS = 8 * 4 * BATCH * TOKENS * HIDDEN
STEPS_OF_ONE_FLEET = 50  # for the random order, and for the median of what deciding takes
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Row:
    """One order on one group of instances.

    Ratios are step time over the optimum, a gain is the share of fifo's step time that is saved, and
    `policy_seconds_per_step` is the median, on this machine, of what all decisions of a step take.
    """

    instances: str
    order: str
    mean_ratio: float
    p95_ratio: float
    worst_ratio: float
    optimal_share: float
    mean_gain_over_fifo: float
    policy_seconds_per_step: float


class Timed:
    """An order that adds up the time that its decisions take."""

    def __init__(self, order: Order) -> None:
        self.order, self.name, self.seconds = order, order.name, 0.0

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:
        began = time.perf_counter()
        job = self.order.pick(now, arrived, expected)
        self.seconds += time.perf_counter() - began
        return job

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


def device_job(device: DeviceProfile, cut: int, server_flops: float, backward: float) -> Job:
    """The job of one step; `server_flops` is the server's effective FLOP/s."""
    forward = cut * BLOCK_FLOPS / device.effective_flops
    return Job(
        device=device.name,
        release_seconds=forward + device.latency_seconds + ACTIVATION_BITS / device.up_bits_per_second,
        work_seconds=(NUM_BLOCKS - cut) * BLOCK_FLOPS * (1 + backward) / server_flops,
        tail_seconds=device.latency_seconds + ACTIVATION_BITS / device.down_bits_per_second + backward * forward,
        ratio=cut / device.effective_flops,
    )


def fleet_jobs(fleet: Fleet, slowdown: float, backward: float) -> list[Job]:
    """One step of a fleet whose devices lend `max_blocks` (3 where they do not say)."""
    speed = fleet.server.effective_flops / slowdown
    return [device_job(d, 3 if d.max_blocks is None else d.max_blocks, speed, backward) for d in fleet.devices]


def random_jobs(generator: random.Random, backward: float) -> list[Job]:
    """One step of a random fleet."""

    def log_uniform(low: float, high: float) -> float:
        return math.exp(generator.uniform(math.log(low), math.log(high)))

    devices = [
        DeviceProfile(
            name=f"device-{i:02d}",
            flops_per_second=log_uniform(0.1e12, 2e12),
            efficiency=1.0,
            memory_bytes=8 * 2**30,
            up_bits_per_second=log_uniform(20e6, 200e6),
            down_bits_per_second=log_uniform(20e6, 200e6),
            latency_seconds=0.005,
            max_blocks=generator.randint(1, 3),
        )
        for i in range(generator.randint(4, 16))
    ]
    cuts = [device.max_blocks or 0 for device in devices]
    load = log_uniform(0.25, 4)
    unit = [device_job(d, cut, 1.0, backward) for d, cut in zip(devices, cuts, strict=True)]
    alone = statistics.mean(job.release_seconds + job.tail_seconds for job in unit)
    speed = sum(job.work_seconds for job in unit) / (load * alone)
    return [device_job(d, cut, speed, backward) for d, cut in zip(devices, cuts, strict=True)]


def measure(name: str, steps: Sequence[Sequence[Job]], seed: int) -> list[Row]:
    """Plays every order on the same steps."""
    best = [carlier(jobs).makespan_seconds for jobs in steps]
    took, policy_seconds = dict[str, list[float]](), dict[str, float]()
    for order_name in ORDERS:
        order, spent = Timed(order_by_name(order_name, seed)), [0.0]
        took[order_name] = list[float]()
        for jobs in steps:
            took[order_name].append(simulate(order, jobs).makespan_seconds)
            spent.append(order.seconds)
        policy_seconds[order_name] = statistics.median(after - before for before, after in pairwise(spent))
    rows = []
    for order_name, times in took.items():
        ratios = sorted(seconds / least for seconds, least in zip(times, best, strict=True))
        gains = [1 - seconds / fifo for seconds, fifo in zip(times, took["fifo"], strict=True)]
        rows.append(
            Row(
                instances=name,
                order=order_name,
                mean_ratio=statistics.mean(ratios),
                p95_ratio=ratios[math.ceil(0.95 * len(ratios)) - 1],
                worst_ratio=ratios[-1],
                optimal_share=sum(ratio < 1 + SAME for ratio in ratios) / len(ratios),
                mean_gain_over_fifo=statistics.mean(gains),
                policy_seconds_per_step=policy_seconds[order_name],
            )
        )
    return rows


def table(rows: Sequence[Row], backward: float) -> Listing:
    """The rows as a person reads them."""
    result = Listing(title=f"step time over the optimum (backward = {backward:g} x forward)")
    result.add_column("instances")
    result.add_column("order")
    for heading in ("mean", "p95", "worst", "optimal in", "gain over fifo", "policy per step"):
        result.add_column(heading, justify="right")
    for previous, row in pairwise([None, *rows]):
        assert row is not None
        starts_group = previous is None or previous.instances != row.instances
        if starts_group:
            result.add_section()
        result.add_row(
            row.instances if starts_group else "",
            row.order,
            *(f"{ratio:.4f}" for ratio in (row.mean_ratio, row.p95_ratio, row.worst_ratio)),
            f"{row.optimal_share:.1%}",
            f"{row.mean_gain_over_fifo:+.2%}",
            f"{row.policy_seconds_per_step * 1e3:.3f} ms",
        )
    return result


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fleets", type=int, default=200, help="number of random fleets")
    parser.add_argument("--seed", type=int, default=0, help="of the random fleets and the random order")
    parser.add_argument("--backward", type=float, default=1.0, help="cost of a backward pass over a forward one")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/schedule.json"))
    args = parser.parse_args()

    six, generator = load_fleet("memsfl-six"), random.Random(args.seed)
    groups = {
        f"{six.name}, server x1/{slowdown}": [fleet_jobs(six, slowdown, args.backward)] * STEPS_OF_ONE_FLEET
        for slowdown in (1, 4, 16)
    }
    groups[f"{args.fleets} random fleets"] = [random_jobs(generator, args.backward) for _ in range(args.fleets)]
    rows = [row for name, steps in groups.items() for row in measure(name, steps, args.seed)]
    unproven = sum(not carlier(jobs).optimal for steps in groups.values() for jobs in steps)

    console = terminal()
    console.print(table(rows, args.backward))
    console.print(f"instances whose optimum is not proven: {unproven}")
    settings = {"fleets": args.fleets, "seed": args.seed, "backward": args.backward, "unproven": unproven}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.json, json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=2))
    console.print(f"written to {args.json}")


if __name__ == "__main__":
    main()
