"""The gain from cutting the server in stages and from decomposing the backward pass.

    python benchmarks/pipeline.py

`server.steps.stages` on the server side of each job, forward and backward of one batch, without the optimizer's step:
1, 2 and 3 stages, the batch whole or in four micro-batches, the backward pass in one piece or in two. All contenders
hold the same base and adapter and take turns in one fresh process with one thread; every turn's ratio is to the
ordinary pass (one stage, one micro-batch) of the same round of turns, so neighbours in time are compared. Medians.

Two figures, of which only the first is a measurement of a run:
- here: processor time of all pieces, one after the other, as cutlayer does them. What the default follows.
- machines: the makespan of `server.steps.schedule` if every stage had a machine like this one and sending took no time,
  made of the medians of the measured pieces. What staging could bring at best.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.report.listing import Listing
from cutlayer.server.steps.schedule import Piece, schedule
from cutlayer.server.steps.stages import Stages
from jobs import JOBS, Job, random_batches
from models import model_folder
from tables import in_fresh_process, publish

SHAPES = [
    (stages, micro_batches, decomposed)
    for stages in (1, 2, 3)
    for micro_batches in (1, 4)
    for decomposed in ((False,) if stages == 1 else (False, True))
]
"""The first is the ordinary pass."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender; ratios are to the ordinary pass, below 1 is faster."""

    model: str
    stages: int
    micro_batches: int
    decomposed: bool
    cpu_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    machines_ms: float
    machines_ratio: float
    same_loss: bool


class TimedStages(Stages):
    """Stages that note what every piece takes."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.took: defaultdict[tuple[int, Piece], list[float]] = defaultdict(list)

    def _forward(self, stage: int, *rest: Any) -> Any:
        began = time.process_time()
        passing = super()._forward(stage, *rest)
        self.took[stage, "forward"].append(time.process_time() - began)
        return passing

    def _back(self, stage: int, what: Piece, *rest: Any) -> None:
        began = time.process_time()
        super()._back(stage, what, *rest)
        self.took[stage, what].append(time.process_time() - began)


def measure(job: Job, turns: int) -> list[Row]:
    """All contenders on one job, in turns; the first turn of each warms up."""
    torch.set_num_threads(1)
    base = Base(job.settings)
    [batch] = random_batches(job, 1)
    device = base.device_part(job.cut, frozenset())
    h_BTD, mask_BT = device.forward(model_inputs(batch)), batch.attention_mask_BT.bool()
    adapter = {name: nn.Parameter(base.initial_adapter(0)[name]) for name in base.server_names(job.cut)}
    contenders = [
        TimedStages(base, job.cut, None, stages=stages, micro_batches=micro_batches, decomposed=decomposed)
        for stages, micro_batches, decomposed in SHAPES
    ]
    seconds: list[list[float]] = [[] for _ in contenders]
    losses: list[float] = [0.0 for _ in contenders]
    for turn in range(turns + 1):
        for index in range(len(contenders)) if turn % 2 else reversed(range(len(contenders))):
            contenders[index].use(adapter)
            began = time.process_time()
            losses[index] = contenders[index].backward(h_BTD, mask_BT, batch.labels)
            seconds[index].append(time.process_time() - began)
            for parameter in adapter.values():
                parameter.grad = None
    return [_row(job, index, contenders[index], seconds, losses) for index in range(len(SHAPES))]


def _row(job: Job, index: int, timed: TimedStages, seconds: list[list[float]], losses: list[float]) -> Row:
    stages, micro_batches, decomposed = SHAPES[index]
    medians = {piece: statistics.median(took) for piece, took in timed.took.items()}
    slots = schedule(stages, micro_batches, decomposed=decomposed, seconds=lambda stage, what: medians[stage, what])
    machines = max(slot.end_seconds for slot in slots)
    ratios = sorted(mine / ordinary for mine, ordinary in zip(seconds[index][1:], seconds[0][1:], strict=True))
    return Row(
        model=job.model,
        stages=stages,
        micro_batches=micro_batches,
        decomposed=decomposed,
        cpu_ms=1e3 * statistics.median(seconds[index][1:]),
        ratio=statistics.median(ratios),
        ratio_quartiles=(ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]),
        machines_ms=1e3 * machines,
        machines_ratio=machines / statistics.median(seconds[0][1:]),
        same_loss=abs(losses[index] - losses[0]) <= 1e-5 * abs(losses[0]),
    )


def table(rows: Sequence[Row]) -> Listing:
    """The rows as a person reads them."""
    result = Listing(title="forward and backward of the server side; ratios to the ordinary pass, below 1 is faster")
    for heading in ("model", "stages", "micro-batches", "backward"):
        result.add_column(heading)
    for heading in ("here, cpu ms", "ratio", "quartiles", "machines, ms", "ratio", "loss"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            row.model,
            str(row.stages),
            str(row.micro_batches),
            "in two" if row.decomposed else "in one",
            f"{row.cpu_ms:.1f}",
            f"{row.ratio:.3f}",
            "{:.3f} {:.3f}".format(*row.ratio_quartiles),
            f"{row.machines_ms:.1f}",
            f"{row.machines_ratio:.3f}",
            "equal" if row.same_loss else "differs",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=JOBS, default=["gpt2", "minilm", "nano"])
    parser.add_argument("--turns", type=int, default=12, help="of each contender, after one that warms up")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/pipeline.json"))
    args = parser.parse_args(arguments)
    rows = []
    for name in args.models:
        model_folder(name)
        rows += in_fresh_process(measure, JOBS[name], args.turns)
    publish([table(rows)], args.json, {"turns": args.turns}, {"models": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
