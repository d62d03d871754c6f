"""The founding papers' headlines, measured again: the same comparison on MiniLM, ours beside the paper's.

    python benchmarks/claims.py --data FOLDER [--full] [--only mergesfl]

FOLDER holds the data sets `emotion`, `sst2`, `mrpc` and `gsm8k` (train.parquet, validation.parquet). Systems whose name
ends with `_chat` are measured on SmolLM2-135M-Instruct and chats instead of MiniLM. Every trial is one
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
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import yaml
from datasets import load_dataset

from cutlayer import load_finetuned
from cutlayer.config import read_config
from cutlayer.fleet.allotment import joules
from cutlayer.fleet.profile import load_fleet
from cutlayer.model.part import model_inputs
from cutlayer.policies.qlearn import LOW, reference_of, step_seconds
from cutlayer.report.json_lines import JsonLines
from cutlayer.report.listing import Listing
from cutlayer.report.round_row import records_of
from cutlayer.run.inputs import RunInputs, prepare
from cutlayer.types import History, StepRecord
from tables import publish
from writer import writer_folder

VALIDATION_ROWS = 500
AS_A_CLASSIFIER = ["--template", "plain", "--lr", "2e-3", "-o", "lora.targets=[]"]
"""The defaults that causal LM had when these figures were first taken."""
COLUMNS = {
    "emotion": ["--text", "text"],
    "sst2": ["--text", "sentence"],
    "mrpc": ["--text", "sentence1", "--text-pair", "sentence2"],
    "gsm8k": ["--task", "causal-lm", "--prompt", "question", "--answer", "answer", *AS_A_CLASSIFIER],
    "gsm8k-chats": [
        *("--task", "causal-lm", "--prompt", "question", "--answer", "answer", "-o", "train.eval_rows=60"),
        *("-o", "train.metrics=[exact_match]", "-o", r"train.answer_pattern='#### *(\S+)'"),
        *("-o", "train.metric_rows=200", "-o", "train.new_tokens=128"),
    ],
    "builtin:meanings": [
        *("--task", "causal-lm", "-o", "train.eval_rows=60"),
        *("-o", "train.metrics=[rouge_l]", "-o", "train.metric_rows=40", "-o", "train.new_tokens=64"),
    ],
}
"""Flags that say what a data set holds, and what answers to it are judged by."""
CHATS = "-chats"
"""Ends the name of a data set that is written by the model's own template."""
WRITER = "a-small-writer"
"""Stands in a trial's flags for the folder of `writer.py`'s model."""
COMMON = ["--max-length", "64", "--local-steps", "5", "--batch-size", "16"]
EVERYWHERE = "-o lora.targets=[all-linear]"
WRITING = f"--model {WRITER} --rank 32 --alpha 64 --lr 3e-3 --batch-size 8 --max-length 96 {EVERYWHERE}"
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
      quick: flags that make the quick mode shorter still.
    """

    data: str
    methods: tuple[str, ...]
    flags: str
    rounds: int
    target: float | None = None
    quick: str = ""

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


def points(one: Figures, other: Figures) -> str:
    """The difference of two accuracies in percentage points, and both accuracies."""
    return f"{100 * (accuracy(one) - accuracy(other)):+.1f} ({accuracy(one):.3f} / {accuracy(other):.3f})"


def points_and_spread(one: Figures, other: Figures) -> str:
    """The same, with how far the seeds of the first lie from their mean."""
    gain = f"{100 * (accuracy(one) - accuracy(other)):+.1f} +- {100 * spread(one):.1f}"
    return f"{gain} ({accuracy(one):.3f} / {accuracy(other):.3f})"


def less(one: Figures, other: Figures, of: str) -> str:
    """The percentage by which a whole run's total differs from the other's: below 0 where the first takes less."""
    mine, others = (figures["totals"][of]["mean"] for figures in (one, other))
    return f"{100 * (mine / others - 1):+.1f} %" if others else "none there"


def speedup(one: Figures, other: Figures, of: str = "virtual_seconds") -> str:
    """The factor by which the target was reached sooner than by the other."""
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
        ours = points(system, other)
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
        ours = points(system, other)
        lines += [
            Line("final accuracy, points", "+0.4 to +4.5 at equal sparsity", ours, other["label"]),
            Line(f"time to accuracy {trial.target}", "1.4 to 6.9 x", speedup(system, other), other["label"]),
            Line("device computation", "-", less(system, other, "flops"), other["label"]),
        ]
    return lines


def hsplitlora(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Perplexities, which are lower where they are better, and times to the target."""
    system, *others = figures
    lines = []
    for other in others:
        paper = {"hetlora": ("-0.47", "1.7 x"), "splitlora": ("-0.15", "1.5 x")}
        less_by, sooner = paper.get(other["label"].partition(":")[0], ("-", "-"))
        values = [one["final"]["perplexity"]["mean"] for one in (system, other)]
        ours = f"{values[0] - values[1]:+.2f} ({values[0]:.2f} / {values[1]:.2f})"
        lines += [
            Line("final perplexity", less_by, ours, other["label"]),
            Line(f"time to perplexity {trial.target:g}", sooner, speedup(system, other), other["label"]),
            Line("time of the whole run", "-", less(system, other, "virtual_seconds"), other["label"]),
            Line("bytes of the whole run", "-", less(system, other, "bytes"), other["label"]),
        ]
    return lines


def on_a_chat_model(
    trial: Trial, figures: Sequence[Figures], papers: Mapping[str, str] = MappingProxyType({})
) -> list[Line]:
    """Lines of a language model: its metrics and the costs of its run; what one process took for it on this machine.

    Args:
      trial: The comparison.
      figures: The system first.
      papers: By claim, the paper's number.
    """
    system, *others = figures
    lines = [Line("steps/s here, and the peak of the process", "-", here(system), system["label"])]
    for other in others:
        against = f"{other['label']}, {trial.data.removeprefix('builtin:').removesuffix(CHATS)}"
        said = [
            (f"final {name}", " / ".join(mean_and_spread(one, name) for one in (system, other)))
            for name in ("perplexity", "exact_match", "rouge_l")
            if name in system["final"]
        ]
        took = [
            ("training time", less(system, other, "virtual_seconds")),
            ("device computation", less(system, other, "flops")),
            ("bytes of the whole run", less(system, other, "bytes")),
            ("device memory (cost model)", bytes_ratio(system, other)),
        ]
        lines += [Line(claim, papers.get(claim, "-"), ours, against) for claim, ours in (*said, *took)]
        lines.append(Line("steps/s here, and the peak of the process", "-", here(other), against))
    return lines


def mean_and_spread(one: Figures, metric: str) -> str:
    """A metric at the end, with how far seeds lie from their mean where there are several."""
    final = one["final"][metric]
    return f"{final['mean']:.3f}" + ("" if final["spread"] is None else f" +- {final['spread']:.3f}")


def here(one: Figures) -> str:
    """Device steps per second of wall time in rounds that were not evaluated, and the most memory of a run."""
    rows = [row for folder in one["folders"] for row in rows_in(folder, half=False) if not row["validation"]]
    seconds = sum(row["wall_seconds"] for row in rows)
    steps = sum(record.steps for row in rows for record in records_of(row))
    peaks = [json.loads((folder / "summary.json").read_text())["peak_memory_bytes"] for folder in one["folders"]]
    return f"{steps / seconds:.2f}, {max(peaks) / 2**20:.0f} MiB" if seconds else f"-, {max(peaks) / 2**20:.0f} MiB"


def fedsl(_trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Every setting against the one that thins nothing."""
    plain, *others = figures
    lines = []
    for one in others:
        ours = points_and_spread(one, plain)
        up, down = ([figure[f"bytes_{way}"]["mean"] for figure in (one, plain)] for way in ("up", "down"))
        lines += [
            Line("device computation", "-", less(one, plain, "flops"), one["label"]),
            Line("bytes up", "-", ratio(*up), one["label"]),
            Line("bytes down", "-", ratio(*down), one["label"]),
            Line("training time", "-", less(one, plain, "virtual_seconds"), one["label"]),
            Line("final accuracy, points", "best at moderate pruning, 8 bits", ours, one["label"]),
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
        facts = [figure["facts"] for figure in (one, psl)]
        down = [figure["bytes_down"]["mean"] for figure in (one, psl)]
        once = [all_down - fact["repeated_bytes"] for all_down, fact in zip(down, facts, strict=True)]
        backward = [fact["server_backward_flops"] for fact in facts]
        ours = points_and_spread(one, psl)
        lines += [
            Line("server's backward pass", "phi/C + 1 - phi", ratio(*backward), against),
            Line("bytes that devices get", "-", ratio(*down), against),
            Line("bytes that the server sends, if it can broadcast", "towards phi/C + 1 - phi", ratio(*once), against),
            Line("final accuracy, points", "close to PSL", ours, against),
        ]
    return lines


def salf(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Accuracy when the shortest of the runs is over, and at the end; how long a round took."""
    system, *others = figures
    end = min(one["totals"]["virtual_seconds"]["mean"] for one in figures)
    lines = []
    for other in others:
        against = f"{other['label']}{DROPPING if '--stragglers' in trial.flags else ''}"
        values = [f"{100 * accuracy_by(one, end):.1f}" for one in (system, other)]
        rounds = [
            fmean(x for folder in one["folders"] for x in round_seconds(folder, half=False)) for one in (system, other)
        ]
        lines += [
            Line(f"accuracy after {end:.0f} s, %", "-", " / ".join(values), against),
            Line(
                "accuracy after as many rounds, %",
                "-",
                f"{100 * accuracy(system):.1f} / {100 * accuracy(other):.1f}",
                against,
            ),
            Line("a round", "-", f"{rounds[0]:.2f} s / {rounds[1]:.2f} s", against),
        ]
    return lines


DROPPING = ", whose late devices are dropped"


def accuracy_by(one: Figures, seconds: float) -> float:
    """The accuracy at the last evaluation up to this time, the mean over runs; 0 before the first."""
    return fmean(
        (
            [0.0]
            + [
                row["validation"]["accuracy"]
                for row in rows_in(folder, half=False)
                if row["validation"] and row["virtual_seconds"] <= seconds * (1 + 1e-9)
            ]
        )[-1]
        for folder in one["folders"]
    )


def reindsplit(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Figures of rounds and steps: of all rounds and, in brackets, of the second half, when a table has been learnt.

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


def hsfl(_trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Training time, the accuracy of each device on rows spread as its own are, and the accuracy on all classes."""
    system, *others = figures
    mine = [at_home(folder) for folder in system["folders"]]
    lines = []
    for other in others:
        against, theirs = other["label"], [at_home(folder) for folder in other["folders"]]
        values = [statistic(shares) for statistic in (mean_of_all, worst) for shares in (mine, theirs)]
        everywhere = f"{accuracy(system):.3f} / {accuracy(other):.3f}"
        lines += [
            Line("training time", "less", less(system, other, "virtual_seconds"), against),
            Line("accuracy at home, mean over devices (worst)", "-", "{} / {} ({} / {})".format(*values), against),
            Line("final accuracy on all classes", "-", everywhere, against),
        ]
    return lines


def mean_of_all(runs: Sequence[Mapping[str, float]]) -> str:
    return f"{fmean(fmean(run.values()) for run in runs):.3f}"


def worst(runs: Sequence[Mapping[str, float]]) -> str:
    return f"{fmean(min(run.values()) for run in runs):.3f}"


def at_home(folder: Path) -> dict[str, float]:
    """Accuracy of each device's own model, or of the one that all share, on rows of the classes that the device has.

    The validation rows of each class are weighed by how often the device has that class.
    """
    inputs = prepare(read_config(folder / "config.yaml"))
    recalls: dict[Path, np.ndarray[Any, Any]] = {}
    result = {}
    for device, counts in inputs.label_counts.items():
        own = folder / "adapters" / device
        adapter = own if own.is_dir() else folder / "adapter"
        if adapter not in recalls:
            recalls[adapter] = recall(load_finetuned(adapter), inputs)
        result[device] = float(np.average(recalls[adapter], weights=counts))
    return result


def recall(model: Any, inputs: RunInputs) -> np.ndarray[Any, Any]:
    """The part of each class's validation rows that the model knows."""
    right, rows = np.zeros(len(inputs.labels)), np.zeros(len(inputs.labels))
    with torch.no_grad():
        for batch in inputs.validation_batches():
            guessed = model(**model_inputs(batch, "cpu")).logits.argmax(-1)
            np.add.at(right, batch.labels.numpy(), (guessed == batch.labels).numpy())
            np.add.at(rows, batch.labels.numpy(), 1)
    return right / np.maximum(rows, 1)


def fedkseed(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """A device's bytes of a round, which devices take each round; and what they buy."""
    system, *others = figures

    def device_round(one: Figures) -> float:
        rows = [row for folder in one["folders"] for row in rows_in(folder, half=False)]
        return fmean(d["bytes_up"] + d["bytes_down"] for row in rows for d in row["devices"].values())

    lines = []
    for other in others:
        against = f"{other['label']}, {trial.data}"
        sent = f"{device_round(system):,.0f} / {device_round(other):,.0f} bytes"
        lines += [
            Line("a device's bytes of a round, both ways", "below 18 kB", sent, against),
            Line("device memory (cost model)", "inference's", bytes_ratio(system, other), against),
            Line("final accuracy", "-", f"{accuracy(system):.3f} / {accuracy(other):.3f}", against),
        ]
    return lines


def ho_sfl(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Accuracy, memory, work and bytes at equal samples."""
    system, *others = figures
    lines = []
    for other in others:
        against = f"{other['label']}, {trial.data}"
        level = other["label"].startswith("splitlora")
        lines += [
            Line("final accuracy, points", "+0.1" if level else "+34.8", points(system, other), against),
            Line("device memory (cost model)", "inference's", bytes_ratio(system, other), against),
            Line("device computation", "-", less(system, other, "flops"), against),
            Line("bytes of the whole run", "-", less(system, other, "bytes"), against),
            Line("training time", "-", less(system, other, "virtual_seconds"), against),
        ]
    return lines


def petals(_trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """The cost of failing machines: time, and nothing of what is learnt."""
    system, *others = figures
    lines = []
    for other in others:
        pairs = zip(system["folders"], other["folders"], strict=True)
        same = all(adapter_of(one) == adapter_of(two) for one, two in pairs)
        lost = f"{system['facts']['lost']:.0f} of {system['facts']['lost'] + system['facts']['calls']:.0f} calls lost"
        lines += [
            Line(
                "gradients with failures are those without", "equal", "equal" if same else "not equal", other["label"]
            ),
            Line("final accuracy", "-", f"{accuracy(system):.3f} / {accuracy(other):.3f}", other["label"]),
            Line("training time", "-", f"{less(system, other, 'virtual_seconds')} ({lost})", other["label"]),
        ]
    return lines


def adapter_of(folder: Path) -> bytes:
    """The file of a run's adapter."""
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def hfl_prune(_trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Bytes to the sites and on to the cloud, time and accuracy. What devices of a flat method send goes to both."""
    system, *others = figures

    def to_cloud(one: Figures) -> float:
        facts = one["facts"]
        all_bytes = one["bytes_up"]["mean"] + one["bytes_down"]["mean"]
        return facts["cloud_bytes_up"] + facts["cloud_bytes_down"] if "cloud_bytes_up" in facts else all_bytes

    lines = []
    for other in others:
        points = 100 * (accuracy(system) - accuracy(other))
        ours = f"{points:+.1f} ({accuracy(system):.3f} / {accuracy(other):.3f})"
        lines += [
            Line("bytes of devices", "about half", less(system, other, "bytes"), other["label"]),
            Line(
                "bytes on the server's side of the sites", "-", ratio(to_cloud(system), to_cloud(other)), other["label"]
            ),
            Line("training time", "-", less(system, other, "virtual_seconds"), other["label"]),
            Line("final accuracy, points", "similar", ours, other["label"]),
        ]
    return lines


def bytes_ratio(one: Figures, other: Figures) -> str:
    """The most that a device needs, over the other's."""
    return ratio(one["device_bytes"], other["device_bytes"])


def gan_hfsl(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """Time, energy and idle devices, against no delay, other choices on the front, and federated averaging."""
    system, *others = figures
    lines = []
    for other in others:
        against = f"{other['label']}, {trial.flags.split()[1]}"
        energies, idles = ([measure(one) for one in (system, other)] for measure in (energy, idle))
        points = 100 * (accuracy(system) - accuracy(other))
        ours = f"{points:+.1f} ({accuracy(system):.3f} / {accuracy(other):.3f})"
        paper = "solutions dominate FL's" if other["label"].startswith("fedlora") else "-"
        lines += [
            Line("training time", paper, less(system, other, "virtual_seconds"), against),
            Line("energy of the devices", paper, f"{100 * (energies[0] / energies[1] - 1):+.1f} %", against),
            Line("devices that do not compute", "idle time removed", "{:.0%} / {:.0%}".format(*idles), against),
            Line("bytes", "-", less(system, other, "bytes"), against),
            Line("final accuracy, points", "-", ours, against),
        ]
    return lines


def energy(one: Figures) -> float:
    """Joules of all devices in a run, at the power that fleet files have by default; the mean over runs."""
    power = load_fleet("memsfl-six").devices[0]
    return fmean(
        sum(
            joules(power, step.busy_seconds, step.network_seconds, float(step.facts.get("frequency", 1.0)))
            for step in records_in(folder, half=False)
        )
        for folder in one["folders"]
    )


def idle(one: Figures) -> float:
    """The part of rounds in which a device does not compute; the mean over devices and runs."""
    return fmean(
        1 - step.busy_seconds / seconds
        for folder in one["folders"]
        for row, seconds in zip(rows_in(folder, half=False), round_seconds(folder, half=False), strict=True)
        for step in records_of(row)
    )


STEPS: dict[str, tuple[str, Callable[[StepRecord, float], float]]] = {
    "steps over the latency threshold": ("{:.1%}", lambda step, limit: step_seconds(step) > limit),
    "steps that starve their device": ("{:.1%}", lambda step, limit: step.busy_seconds / step.steps < LOW * limit),
    "blocks on a device": ("{:.2f}", lambda step, _limit: step.cut),
}
"""Means over what each device measured in each round, and how they are written."""


def teasq_fed(trial: Trial, figures: Sequence[Figures]) -> list[Line]:
    """A round is a full buffer, not a pass over the fleet: runs are level at equal time, not at equal rounds."""
    system, *others = figures
    end = min(one["totals"]["virtual_seconds"]["mean"] for one in figures)
    lines = []
    for other in others:
        ours = f"{100 * (accuracy(system) - accuracy(other)):+.1f} ({accuracy(system):.3f} / {accuracy(other):.3f})"
        at_end = " / ".join(f"{100 * accuracy_by(one, end):.1f}" for one in (system, other))
        lines += [
            Line(f"accuracy after {end:.0f} s, %", "-", at_end, other["label"]),
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
    """Records of what devices measured in the rounds of a run, or in their second half."""
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


def five_clients(source: str, memory_gib: Sequence[float]) -> dict[str, Any]:
    """A fleet whose clients differ in their memory alone."""
    return {
        "source": source,
        "server": {"tflops": 35.6, "efficiency": 0.3, "memory_gib": 24},
        "defaults": {"tflops": 0.1, "efficiency": 0.3, "up_mbit": 20, "down_mbit": 20, "latency_ms": 5},
        "devices": [{"name": f"client-{number}", "memory_gib": gib} for number, gib in enumerate(memory_gib)],
    }


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
    "shared-server-six": {
        "source": "devices of memsfl-six, which lend any number of blocks, and a sixteenth of its server; our choice",
        "server": {"tflops": 3.2625, "efficiency": 0.3, "memory_gib": 16},
        "defaults": {"efficiency": 0.3, "up_mbit": 100, "down_mbit": 100, "latency_ms": 5},
        "devices": [
            {"name": "jetson-nano", "tflops": 0.472, "memory_gib": 4},
            {"name": "jetson-tx2", "tflops": 1.33, "memory_gib": 8},
            {"name": "snapdragon-8s-gen-3", "tflops": 1.689, "memory_gib": 8},
            {"name": "a17-pro", "tflops": 2.147, "memory_gib": 8},
            {"name": "snapdragon-8-gen-3", "tflops": 2.774, "memory_gib": 12},
            {"name": "m3", "tflops": 3.533, "memory_gib": 8},
        ],
    },
    "stragglers-ten": {
        "source": "ten machines, of which nine are slower by a factor that is drawn anew in every round; our choice",
        "server": {"tflops": 1.0, "efficiency": 0.3, "memory_gib": 8},
        "defaults": {"efficiency": 0.3, "up_mbit": 100, "down_mbit": 100, "latency_ms": 5, "memory_gib": 4},
        "devices": [
            {"name": "steady", "tflops": 0.005},
            {
                "name": "straggler",
                "count": 9,
                "tflops": 0.005,
                "modes": [0.92, 0.84, 0.76, 0.68, 0.6],
                "mode_rounds": 1,
            },
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
    "clinic-six": {
        "source": "old desktops on a wired network that they share, where computing decides; all of it our choice",
        "server": {"tflops": 20.0, "efficiency": 0.3, "memory_gib": 16, "up_mbit": 1000, "down_mbit": 1000},
        "defaults": {"efficiency": 0.3, "up_mbit": 500, "down_mbit": 500, "latency_ms": 1, "memory_gib": 4},
        "devices": [
            {"name": "old", "count": 3, "tflops": 0.05},
            {"name": "newer", "count": 3, "tflops": 0.15},
        ],
    },
    "unequal-five": five_clients(
        "five clients of unequal memories, as HSplitLoRA's, for a small model; all of it our choice",
        (0.055, 0.06, 0.07, 0.08, 0.1),
    ),
    "roomy-five": five_clients(
        "the clients of unequal-five with room for the whole model, which HetLoRA's hold; our choice",
        (0.105, 0.11, 0.115, 0.125, 0.14),
    ),
    "unequal-ten": {
        "source": "ten machines of three speeds, each slower now and then; our choice",
        "server": {"tflops": 1.0, "efficiency": 0.3, "memory_gib": 8},
        "defaults": {"efficiency": 0.3, "up_mbit": 100, "down_mbit": 100, "latency_ms": 5, "memory_gib": 4}
        | {"modes": [1.0, 0.85, 0.7], "mode_rounds": 1},
        "devices": [
            {"name": "slow", "count": 4, "tflops": 0.0025},
            {"name": "middle", "count": 3, "tflops": 0.005},
            {"name": "quick", "count": 3, "tflops": 0.01},
        ],
    },
    "swarm-six": {
        "source": "the devices of memsfl-six, and eight machines that fail at one request in a hundred; our choice",
        "server": {"tflops": 52.2, "efficiency": 0.3, "memory_gib": 16},
        "defaults": {"efficiency": 0.3, "up_mbit": 100, "down_mbit": 100, "latency_ms": 5, "memory_gib": 4},
        "devices": [{"name": "jetson", "tflops": 0.472, "count": 6}],
        "spans": [
            {"name": "gpu", "tflops": 8, "efficiency": 0.3, "memory_gib": 0.1, "up_mbit": 100, "down_mbit": 100}
            | {"latency_ms": 20, "count": 8, "failures": 0.01, "outage_s": 30}
        ],
    },
    "three-sites": {
        "source": "nine devices of three kinds at three sites, behind lines of 20 Mbit/s; our choice",
        "server": {"tflops": 52.2, "efficiency": 0.3, "memory_gib": 16},
        "defaults": {"efficiency": 0.3, "up_mbit": 50, "down_mbit": 50, "latency_ms": 2, "memory_gib": 8},
        "devices": [
            {"name": f"{kind}-{site}", "tflops": tflops}
            for site in "abc"
            for kind, tflops in (("pi", 0.05), ("nano", 0.2), ("nx", 1.0))
        ],
        "sites": [
            {"name": f"site-{site}", "devices": [f"{kind}-{site}" for kind in ("pi", "nano", "nx")]}
            | {"up_mbit": 20, "down_mbit": 20, "latency_ms": 20}
            for site in "abc"
        ],
    },
}
"""Fleets of this file alone, by name: computing decides about time in them, and not the network."""
FIXED_CUTS = (("cut=1",), ("cut=2",), ("cut=3",))
SMALL_STEPS = "--batch-size 8 --max-length 32"
SHORT_STEPS = "--local-steps 1 --batch-size 4 --eval-every 100 --spread iid"


def ratio(one: float, other: float) -> str:
    return f"x {one / other:.3f}"


def spread(one: Figures) -> float:
    return float(one["final"]["accuracy"]["spread"] or 0.0)


DEADLINE = 3.0
"""Seconds in which the steady one of `stragglers-ten` is just done, and the others are at some block."""
SHORT_ROUNDS = 24
ONE_STEP = "--lr 4e-3 --spread iid --local-steps 1 --batch-size 4 --max-length 24 --eval-every 4"
STRAGGLERS = f"--fleet stragglers-ten {ONE_STEP}"
ONE_CLASS = "--fleet memsfl-six --lr 4e-3 --spread one-class"
JETSONS = "--fleet jetson-80 --lr 4e-3 --spread"
ON_CHATS = "--model builtin:smollm2 --fleet memsfl-six --batch-size 4 --lr 1e-3 --eval-every 100"
MATHS = f"{ON_CHATS} --max-length 256 --local-steps 2"
PLACES = f"{ON_CHATS} --max-length 128 --local-steps 4"
ONE_SMALL_STEP = (
    "--rounds 1 --local-steps 1 --batch-size 1 -o train.eval_rows=4 -o train.metric_rows=2 -o train.new_tokens=4"
)
"""Flags of the quick mode for a model that takes seconds for a step."""
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
    "hsfl": (
        hsfl,
        (
            Trial(
                "emotion",
                ("hsfl", "hsfl:personal=false", "sfl_v1:cut=memory", "sfl_v1:cut=1", "sfl_v1:cut=3", "local_only"),
                f"--fleet shared-server-six --lr 4e-3 --spread dirichlet:0.1 {SMALL_STEPS} --eval-every 100",
                10,
            ),
        ),
    ),
    "fedkseed": (
        fedkseed,
        tuple(
            Trial(
                data,
                ("fedkseed:full=false", "fedkseed:full=false,pro=true", "fedlora"),
                "--fleet memsfl-six --lr 1e-3 --local-steps 200 --batch-size 1 --max-length 32 --eval-every 100",
                4,
            )
            for data in ("sst2",)
        ),
    ),
    "ho_sfl": (
        ho_sfl,
        tuple(
            Trial(
                data,
                ("ho_sfl:cut=3", "splitlora:cut=3", "prge:queries=2"),
                f"--fleet memsfl-six --lr 4e-3 {SMALL_STEPS} --eval-every 100",
                16,
            )
            for data in ("sst2", "emotion")
        ),
    ),
    "salf": (
        salf,
        (
            Trial(
                "emotion",
                (
                    f"salf:deadline={DEADLINE}",
                    f"salf:deadline={DEADLINE},aggregation=ipw",
                    f"salf:deadline={DEADLINE},aggregation=code",
                    "fedlora",
                ),
                STRAGGLERS,
                SHORT_ROUNDS,
            ),
            Trial(
                "emotion",
                (f"salf:deadline={DEADLINE}", "fedlora"),
                f"{STRAGGLERS} --stragglers deadline:{DEADLINE}",
                SHORT_ROUNDS,
            ),
        ),
    ),
    "adel": (
        salf,
        (
            Trial(
                "emotion",
                (
                    f"adel:budget={SHORT_ROUNDS * DEADLINE}",
                    f"adel:budget={SHORT_ROUNDS * DEADLINE},aggregation=code",
                    f"salf:deadline={DEADLINE}",
                    "fedlora",
                ),
                f"--fleet unequal-ten {ONE_STEP}",
                SHORT_ROUNDS,
            ),
        ),
    ),
    "hsplitlora": (
        hsplitlora,
        (
            Trial(
                "gsm8k",
                ("hsplitlora", "splitlora:cut=1", "hsplitlora:server_share=1.0", "hsplitlora:lowest=32"),
                f"--fleet unequal-five {WRITING}",
                16,
                target=400.0,
            ),
            Trial("gsm8k", ("hsplitlora", "hetlora:by=memory"), f"--fleet roomy-five {WRITING}", 16, target=400.0),
        ),
    ),
    "fedsl": (
        fedsl,
        (
            Trial(
                "emotion",
                tuple(
                    f"fedsl:cut=2,{options}"
                    for options in (
                        "prune=0,dropout=0,bits=null",
                        "prune=0.3,dropout=0,bits=null",
                        "prune=0.6,dropout=0,bits=null",
                        "prune=0,dropout=0.1,bits=null",
                        "prune=0,dropout=0.5,bits=null",
                        "prune=0,dropout=0,bits=8",
                        "prune=0,dropout=0,bits=4",
                        "prune=0,dropout=0,bits=2",
                        "prune=0.3,dropout=0.1,bits=8",
                    )
                ),
                "--fleet memsfl-six --lr 4e-3 --batch-size 8 --local-steps 4 --max-length 24 --eval-every 100 "
                f"{EVERYWHERE}",
                12,
            ),
        ),
    ),
    "petals": (
        petals,
        (
            Trial(
                "emotion",
                ("petals", "fedlora", "petals:recover=restart"),
                f"--fleet swarm-six --lr 4e-3 {SMALL_STEPS} --eval-every 100",
                6,
            ),
        ),
    ),
    "hfl_prune": (
        hfl_prune,
        (
            Trial(
                "emotion",
                ("hfl_prune", "fedlora", "hfl_prune:prune=0.0", "hfl_prune:cloud_every=1"),
                f"--fleet three-sites --lr 4e-3 {SMALL_STEPS} {EVERYWHERE} --eval-every 100",
                20,
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
    "splitfrozen_chat": (
        partial(on_a_chat_model, papers={"training time": "-50.2 %", "device computation": "up to -86.8 %"}),
        (
            Trial(
                "gsm8k-chats",
                ("splitfrozen:cut=10", "splitlora:cut=10", "fedlora"),
                MATHS,
                4,
                quick=ONE_SMALL_STEP,
            ),
        ),
    ),
    "splitlora_chat": (
        partial(on_a_chat_model, papers={"final perplexity": "within 0.04 of centralized, GPT-2 M"}),
        (
            Trial(
                "builtin:meanings",
                ("splitlora:cut=3", "memsfl", "fedlora", "centralized"),
                PLACES,
                4,
                quick=ONE_SMALL_STEP,
            ),
        ),
    ),
    "unequal_chat": (
        on_a_chat_model,
        (Trial("builtin:meanings", ("hetlora", "flora", "legend", "fedlora"), PLACES, 4, quick=ONE_SMALL_STEP),),
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
    "gan_hfsl": (
        gan_hfsl,
        tuple(
            Trial(
                "emotion",
                ("gan_hfsl", "gan_hfsl:delay=0", "gan_hfsl:weight=1", "gan_hfsl:weight=0", "fedlora"),
                f"--fleet {fleet} --lr 4e-3 --spread dirichlet:0.5 --max-length 32 --eval-every 6",
                6,
            )
            for fleet in ("clinic-six", "memsfl-six")
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


def source_of(trial: Trial, data: Path, work: Path) -> str:
    """The value of `--data` for a trial: built-in data by name, or a folder with short validation."""
    if trial.data.startswith("builtin:"):
        return trial.data
    return str(with_short_validation(data / trial.data.removesuffix(CHATS), work))


def hold(trial: Trial, data: Path, work: Path, *, full: bool, seeds: int, jobs: int) -> tuple[str, list[Figures]]:
    """Runs a comparison to its end; returns its command and every method's figures."""
    out = work / ("full" if full else "quick") / trial.name
    words = ["cutlayer", "compare", *trial.methods, "--data", source_of(trial, data, work)]
    words += [*COLUMNS[trial.data], "--rounds", str(trial.rounds if full else 3), "--eval-every", "2", *COMMON]
    known: dict[str, Callable[[], str]] = {name: partial(fleet_file, name, work) for name in FLEETS}
    known[WRITER] = lambda: str(writer_folder(data, work))
    words += [known[word]() if word in known else word for word in shlex.split(trial.flags)]
    words += [] if full else shlex.split(trial.quick)
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
    """Numbers that a method's rounds have noted of its devices, by name, summed over a run; the mean over runs."""
    result: Counter[str] = Counter()
    for run in figures["runs"]:
        for line in (out / run["folder"] / "metrics.jsonl").read_text().splitlines():
            for device in json.loads(line)["devices"].values():
                numbers = {name: fact for name, fact in device["facts"].items() if isinstance(fact, int | float)}
                result.update({name: fact / len(figures["runs"]) for name, fact in numbers.items()})  # type: ignore[arg-type]
    return dict(result)


def table_of(system: str, lines: Sequence[Line]) -> Listing:
    result = Listing(title=system)
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
