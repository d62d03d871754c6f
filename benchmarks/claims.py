"""The founding papers' headlines, measured again: the same comparison on MiniLM, ours beside the paper's.

    python benchmarks/claims.py --data FOLDER [--full] [--only mergesfl]

FOLDER holds the data sets `emotion`, `sst2` and `mrpc` (train.parquet, validation.parquet). Every trial is one
`cutlayer compare`, kept in `--work`: the same command goes on where it was stopped, and each trial's report.html is
there to look at. Figures are read from compare.json. The quick mode has few rounds: it shows that a trial runs, not
what it is worth. `docs/claims.md` holds the results of the full mode and what they say.

The papers' models, data and devices are larger, and of most only the abstract could be read: these are the same
comparisons, not the same experiments.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from datasets import load_dataset
from rich.table import Table

from cutlayer.policies.qlearn import LOW, reference_of, step_seconds
from cutlayer.report.json_lines import JsonLines
from cutlayer.report.round_row import records_of
from cutlayer.types import History, StepRecord
from tables import publish

VALIDATION_ROWS = 500
COLUMNS = {
    "emotion": ["--text", "text"],
    "sst2": ["--text", "sentence"],
    "mrpc": ["--text", "sentence1", "--text-pair", "sentence2"],
}
COMMON = ["--max-length", "64", "--local-steps", "5", "--batch-size", "16"]
EVERYWHERE = "-o lora.targets=[all-linear]"
TENTH = "fraction=0.125"  # ten of the eighty

Figures = Mapping[str, Any]
"""A method's entry in compare.json, and `folders`, those of its runs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One comparison.

    Attributes:
      data: the data set.
      methods: words for `cutlayer compare`, the system first.
      flags: what else the command says.
      rounds: in the full mode; the quick mode has three.
      target: accuracy whose cost is compared; None where cost is not compared.
    """

    data: str
    methods: tuple[str, ...]
    flags: str
    rounds: int
    target: float | None = None

    @property
    def name(self) -> str:
        words = [self.methods[0].partition(":")[0], self.data, *shlex.split(self.flags)]
        return "-".join(word.lstrip("-").replace(":", "").replace("=", "").replace(".", "") for word in words)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure.

    Attributes:
      claim: of the paper's abstract.
      paper: its number.
      ours: what was measured here.
      against: what the system was held against.
    """

    claim: str
    paper: str
    ours: str
    against: str


def accuracy(one: Figures) -> float:
    return float(one["final"]["accuracy"]["mean"])


def less(one: Figures, other: Figures, of: str) -> str:
    """How much less a whole run took."""
    ratio = one["totals"][of]["mean"] / other["totals"][of]["mean"] if other["totals"][of]["mean"] else float("nan")
    return f"{100 * (ratio - 1):+.1f} %"


def speedup(one: Figures, other: Figures, of: str = "virtual_seconds") -> str:
    """How many times sooner the target was reached."""
    if one["to_target"] is None:
        return "not reached by the system"
    if other["to_target"] is None:
        return "not reached by the other"
    return f"{other['to_target'][of]['mean'] / one['to_target'][of]['mean']:.2f} x"


def splitfrozen(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        against = f"{other['label']}, {trial.data}, one class per device"
        gain = 100 * (accuracy(system) / accuracy(other) - 1)
        ours = f"{gain:+.1f} % ({accuracy(system):.3f} / {accuracy(other):.3f})"
        lines += [
            Line("accuracy, relative", "up to +69.4 %", ours, against),
            Line("device computation", "up to -86.8 %", less(system, other, "flops"), against),
            Line("training time", "-50.2 %", less(system, other, "virtual_seconds"), against),
        ]
    return lines


def memsfl(_trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        if not other["label"].startswith("memsfl"):  # another order needs as much memory
            memory = 100 * (system["server_bytes"] / other["server_bytes"] - 1)
            lines.append(Line("server memory (cost model)", "-79 %", f"{memory:+.1f} %", other["label"]))
        lines.append(Line("training time", "-6 %", less(system, other, "virtual_seconds"), other["label"]))
    return lines


def mergesfl(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        against = f"{other['label']}, {trial.flags.split()[-1]}"
        points = 100 * (accuracy(system) - accuracy(other))
        ours = f"{points:+.1f} ({accuracy(system):.3f} / {accuracy(other):.3f})"
        lines += [
            Line("final accuracy, points", "+5.8 to +26.2", ours, against),
            Line(f"time to accuracy {trial.target}", "1.74 to 4.14 x", speedup(system, other), against),
        ]
    return lines


def legend(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        lines += [
            Line(f"time to accuracy {trial.target}", "1.5 to 2.8 x", speedup(system, other), other["label"]),
            Line("bytes of the whole run", "-42.3 %", less(system, other, "bytes"), other["label"]),
            Line("final accuracy", "-", f"{accuracy(system):.3f} / {accuracy(other):.3f}", other["label"]),
        ]
    return lines


def fedspine(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        points = 100 * (accuracy(system) - accuracy(other))
        ours = f"{points:+.1f} ({accuracy(system):.3f} / {accuracy(other):.3f})"
        lines += [
            Line("final accuracy, points", "+0.4 to +4.5 at equal sparsity", ours, other["label"]),
            Line(f"time to accuracy {trial.target}", "1.4 to 6.9 x", speedup(system, other), other["label"]),
            Line("device computation", "-", less(system, other, "flops"), other["label"]),
        ]
    return lines


def sfpl(_trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        ours = f"{accuracy(system) / accuracy(other):.2f} x ({accuracy(system):.3f} / {accuracy(other):.3f})"
        paper = "8.52 to 51.54 x" if other["label"].startswith("sfl_") else "-"
        lines += [
            Line("accuracy, one class per device", paper, ours, other["label"]),
            Line("training time", "-", less(system, other, "virtual_seconds"), other["label"]),
        ]
    return lines


def epsl(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Every share and variant against phi=0, which is parallel split learning."""
    psl, *others = figures
    lines = []
    for one in others:
        against = f"{one['label']} against {psl['label']}, {trial.data}"
        points = 100 * (accuracy(one) - accuracy(psl))
        facts = [figure["facts"] for figure in (one, psl)]
        down = [figure["bytes_down"]["mean"] for figure in (one, psl)]
        once = [all_down - fact["repeated_bytes"] for all_down, fact in zip(down, facts, strict=True)]
        backward = [fact["server_backward_flops"] for fact in facts]
        ours = f"{points:+.1f} +- {100 * spread(one):.1f} ({accuracy(one):.3f} / {accuracy(psl):.3f})"
        lines += [
            Line("server's backward pass", "phi/C + 1 - phi", ratio(*backward), against),
            Line("bytes that devices get", "-", ratio(*down), against),
            Line("bytes that the server sends, if it can broadcast", "towards phi/C + 1 - phi", ratio(*once), against),
            Line("final accuracy, points", "close to PSL", ours, against),
        ]
    return lines


def reindsplit(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """How long rounds and steps take, of all rounds and, in brackets, of the second half, when a table has been learnt.

    The latency threshold of a seed is that of the system, the median of its first round, for the fixed cuts too.
    """
    system, *others = figures
    thresholds = [threshold_of(folder) for folder in system["folders"]]

    def rounds(one: Figures, *, half: bool) -> str:
        return f"{fmean(seconds for folder in one['folders'] for seconds in round_seconds(folder, half=half)):.2f} s"

    def steps(one: Figures, share: Callable[[StepRecord, float], float], *, half: bool) -> float:
        runs = zip(one["folders"], thresholds, strict=True)
        return fmean(share(step, limit) for folder, limit in runs for step in records_in(folder, half=half))

    lines = []
    for other in others:
        against = f"{other['label']}, {trial.flags.split()[1]}"
        values = [rounds(one, half=half) for half in (False, True) for one in (system, other)]
        lines.append(Line("a round", "-", "{} / {} ({} / {})".format(*values), against))
        for claim, (form, share) in STEPS.items():
            values = [form.format(steps(one, share, half=half)) for half in (False, True) for one in (system, other)]
            lines.append(Line(claim, "-", "{} / {} ({} / {})".format(*values), against))
    return lines


STEPS: dict[str, tuple[str, Callable[[StepRecord, float], float]]] = {
    "steps over the latency threshold": ("{:.1%}", lambda step, limit: step_seconds(step) > limit),
    "steps that starve their device": ("{:.1%}", lambda step, limit: step.busy_seconds / step.steps < LOW * limit),
    "blocks on a device": ("{:.2f}", lambda step, _limit: step.cut),
}
"""Means over what each device measured in each round, and how they are written."""


def teasq_fed(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    system, *others = figures
    lines = []
    for other in others:
        ours = f"{100 * (accuracy(system) - accuracy(other)):+.1f} ({accuracy(system):.3f} / {accuracy(other):.3f})"
        lines += [
            Line(f"time to accuracy {trial.target}", "up to 2 x", speedup(system, other), other["label"]),
            Line("final accuracy, points", "up to +16.67", ours, other["label"]),
            Line("bytes to the target", "-", speedup(system, other, "bytes"), other["label"]),
            Line("time of the run", "-", less(system, other, "virtual_seconds"), other["label"]),
        ]
    return lines


def rows_in(folder: Path, *, half: bool) -> list[dict[str, Any]]:
    """The rounds of a run, or their second half."""
    rows = list(JsonLines(folder / "metrics.jsonl").read())
    return rows[len(rows) // 2 :] if half else rows


def records_in(folder: Path, *, half: bool) -> list[StepRecord]:
    """What devices measured in them."""
    return [record for row in rows_in(folder, half=half) for record in records_of(row)]


def threshold_of(folder: Path) -> float:
    """Seconds of a local step: the median of the run's first round."""
    reference = reference_of(History(records_in(folder, half=False)))
    assert reference is not None, "a run that is done has measured something"
    return reference.seconds


def round_seconds(folder: Path, *, half: bool) -> list[float]:
    """Virtual seconds of each round."""
    ends = [0.0, *(row["virtual_seconds"] for row in rows_in(folder, half=False))]
    seconds = [after - before for before, after in pairwise(ends)]
    return seconds[len(seconds) // 2 :] if half else seconds


FLEETS: dict[str, dict[str, Any]] = {
    "field-ten": {
        "source": "insect traps: ten machines as weak as Raspberry Pis that grow hot; all of it our choice",
        "server": {"tflops": 1.0, "efficiency": 0.3, "memory_gib": 8},
        "defaults": {"efficiency": 0.3, "up_mbit": 20, "down_mbit": 20, "latency_ms": 10}
        | {"modes": [1.0, 0.6, 0.3], "mode_rounds": 10},
        "devices": [
            {"name": "trap-zero", "count": 4, "tflops": 0.016, "memory_gib": 0.5},
            {"name": "trap-4", "count": 3, "tflops": 0.048, "memory_gib": 2},
            {"name": "trap-5", "count": 3, "tflops": 0.153, "memory_gib": 4},
        ],
    },
    "come-and-go-ten": {
        "source": "ten machines, the slowest a tenth as fast as the quickest, that are away for a third of the time",
        "server": {"tflops": 1.0, "efficiency": 0.3, "memory_gib": 8},
        "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 20, "memory_gib": 2}
        | {"availability": {"here_seconds": [[0, 20]], "every_seconds": 30, "random_start": True}},
        "devices": [
            {"name": f"machine-{number}", "tflops": round(0.02 * 10 ** (number / 9), 4)} for number in range(10)
        ],
    },
}
"""By name, fleets of this file alone: where computing decides about time, and not the network."""
FIXED_CUTS = (("cut=1",), ("cut=2",), ("cut=3",))
SHORT_STEPS = "--local-steps 1 --batch-size 4 --eval-every 100 --spread iid"


def ratio(one: float, other: float) -> str:
    return f"x {one / other:.3f}"


def spread(one: Figures) -> float:
    return float(one["final"]["accuracy"]["spread"] or 0.0)


ONE_CLASS = "--fleet memsfl-six --lr 4e-3 --spread one-class"
JETSONS = "--fleet jetson-80 --lr 4e-3 --spread"
CLAIMS: dict[str, tuple[Callable[[Trial, Sequence[Figures]], list[Line]], tuple[Trial, ...]]] = {
    "splitfrozen": (
        splitfrozen,
        tuple(
            Trial(data, ("splitfrozen:cut=3", "splitlora:cut=3", "fedlora"), flags, 16)
            for data, flags in (("emotion", ONE_CLASS), ("sst2", ONE_CLASS), ("mrpc", ONE_CLASS))
        ),
    ),
    "memsfl": (
        memsfl,
        (
            Trial(
                "emotion",
                ("memsfl", "sfl_v1", "sl", "memsfl:order=fifo", "memsfl:order=optimal"),
                "--fleet memsfl-six --eval-every 100",
                4,
            ),
        ),
    ),
    "mergesfl": (
        mergesfl,
        tuple(
            Trial(
                "emotion",
                ("mergesfl:cut=3,fraction=0.125", f"sfl_v2:cut=3,{TENTH}", f"fedlora:{TENTH}"),
                f"{JETSONS} {spread}",
                12,
                target=0.6,
            )
            for spread in ("dirichlet:1.0", "dirichlet:0.5", "dirichlet:0.1")
        ),
    ),
    "sfpl": (
        sfpl,
        (
            Trial(
                "emotion",
                ("sfpl:cut=3", "sfl_v1:cut=3", "sfl_v2:cut=3", "mergesfl:cut=3,batch=fixed", "splitfrozen:cut=3"),
                f"{ONE_CLASS} --batch-size 8 --max-length 32 --eval-every 6",
                6,
            ),
        ),
    ),
    "epsl": (
        epsl,
        (
            Trial(
                "emotion",
                tuple(
                    f"epsl:average=true,{options}"
                    for options in (
                        "phi=0",
                        "phi=0.25",
                        "phi=0.5",
                        "phi=1",
                        "phi=0.5,pairing=false",
                        "phi=0.5,variant=sample",
                        "phi=0.5,variant=wire",
                    )
                ),
                "--fleet memsfl-six --lr 4e-3 --batch-size 8 --local-steps 4 --max-length 24 --eval-every 100",
                4,
            ),
        ),
    ),
    "legend": (
        legend,
        (Trial("emotion", (f"legend:{TENTH}", f"fedlora:{TENTH}", f"hetlora:{TENTH}"), f"{JETSONS} iid", 12, 0.6),),
    ),
    "reindsplit": (
        reindsplit,
        tuple(
            Trial(
                "emotion",
                tuple(f"reindsplit:{','.join((*cut, *part))}".rstrip(":") for cut in ((), *FIXED_CUTS)),
                f"--fleet {fleet} {SHORT_STEPS}",
                60,
            )
            for fleet, part in (("field-ten", ()), ("jetson-80", (TENTH,)))
        ),
    ),
    "teasq_fed": (
        teasq_fed,
        (
            Trial(
                "emotion",
                ("teasq_fed:buffer=0.3,concurrency=1.0", "fedlora"),
                "--fleet come-and-go-ten --lr 4e-3 --spread iid --batch-size 8 --max-length 24 --local-steps 2 "
                "--eval-every 4",
                40,
                target=0.5,
            ),
        ),
    ),
    "fedspine": (
        fedspine,
        (Trial("emotion", (f"fedspine:{TENTH}", f"hetlora:{TENTH}"), f"{JETSONS} iid {EVERYWHERE}", 12, 0.6),),
    ),
}


def with_short_validation(data: Path, work: Path) -> Path:
    """The data set with a validation file of the first rows, shuffled: evaluation is most of a short run's time."""
    folder = work / "data" / data.name
    if not folder.exists():
        rows = load_dataset("parquet", data_files=str(data / "validation.parquet"), split="train").shuffle(seed=0)
        folder.mkdir(parents=True)
        rows.select(range(min(VALIDATION_ROWS, len(rows)))).to_parquet(folder / "validation.parquet")
        (folder / "train.parquet").symlink_to((data / "train.parquet").resolve())
    return folder


def hold(trial: Trial, data: Path, work: Path, *, full: bool, seeds: int, jobs: int) -> tuple[str, list[Figures]]:
    """Runs a comparison to its end; returns its command and every method's figures."""
    out = work / ("full" if full else "quick") / trial.name
    words = ["cutlayer", "compare", *trial.methods, "--data", str(with_short_validation(data / trial.data, work))]
    words += [*COLUMNS[trial.data], "--rounds", str(trial.rounds if full else 3), "--eval-every", "2", *COMMON]
    words += [fleet_file(word, work) if word in FLEETS else word for word in shlex.split(trial.flags)]
    words += ["--seeds", str(seeds), "--jobs", str(jobs), "--out", str(out)]
    if trial.target is not None:
        words += ["--target", str(trial.target)]
    subprocess.run([sys.executable, "-m", *words], check=True)
    content = json.loads((out / "compare.json").read_text())
    shown = shlex.join(words).replace(str(work), "WORK")
    methods = content["methods"]
    return shown, [
        {**one, "folders": [out / run["folder"] for run in one["runs"]], "facts": facts_of(out, one)} for one in methods
    ]


def fleet_file(name: str, work: Path) -> str:
    """The file of a fleet of `FLEETS`, written here."""
    path = work / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(FLEETS[name]))
    return str(path)


def facts_of(out: Path, figures: Figures) -> dict[str, float]:
    """What a method's rounds have noted of its devices, as numbers by name, summed over a run; the mean over runs."""
    result: Counter[str] = Counter()
    for run in figures["runs"]:
        for line in (out / run["folder"] / "metrics.jsonl").read_text().splitlines():
            for device in json.loads(line)["devices"].values():
                numbers = {name: fact for name, fact in device["facts"].items() if isinstance(fact, int | float)}
                result.update({name: fact / len(figures["runs"]) for name, fact in numbers.items()})  # type: ignore[arg-type]
    return dict(result)


def table_of(system: str, lines: Sequence[Line]) -> Table:
    result = Table(title=system)
    for heading in ("claim", "paper", "ours", "against"):
        result.add_column(heading)
    for line in lines:
        result.add_row(line.claim, line.paper, line.ours, line.against)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for every system and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--full", action="store_true", help="as many rounds as the page docs/claims.md is made of")
    parser.add_argument("--only", nargs="+", choices=sorted(CLAIMS), default=sorted(CLAIMS), help="systems")
    parser.add_argument("--match", default="", help="only trials with this in their name, such as mrpc")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results/claims"), help="where runs are kept")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/claims.json"))
    args = parser.parse_args(arguments)
    tables, result = [], {}
    for system in args.only:
        figure, trials = CLAIMS[system]
        lines, commands = list[Line](), list[str]()
        for trial in trials:
            if args.match not in trial.name:
                continue
            command, figures = hold(
                trial, args.data, args.work.resolve(), full=args.full, seeds=args.seeds, jobs=args.jobs
            )
            commands.append(command)
            lines += figure(trial, figures)
        tables.append(table_of(system, lines))
        result[system] = {"commands": commands, "lines": [[x.claim, x.paper, x.ours, x.against] for x in lines]}
    publish(tables, args.json, {"full": args.full, "seeds": args.seeds}, result)


if __name__ == "__main__":
    main()
