"""Time and memory of one model at several pruning ratios: that what is removed is really gone.

    python benchmarks/pruning.py

The parts are those that devices train (`Base.pruned`), with the same share of heads and FFN channels taken from every
block, here the last ones; random data, one thread. "inference" is a forward pass of a batch without gradients, "step"
forward, backward and AdamW on LoRA of every linear layer, at the rank given. All ratios take their passes in turn, so a
busy machine slows them alike; times are medians of the processor time of this process, and figures are ratios to the
unpruned model. "exported" is the folder that a run leaves, loaded by plain transformers: where a family's config cannot
say fewer heads (BERT's, so MiniLM's), those that were removed are zeros there and save nothing.

Memory is in a process of its own for each: "weights" what the frozen tensors take; "inference" and "step" VmHWM above
that of a process which has only imported torch, transformers and peft. FLOPs are the cost model's.
That process has pruned the model itself and still holds the unpruned matrices that it read, as one that plays a fleet
must: what the weights save does not show in it, what activations save does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.device.talks.pruned import SHAPE
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard
from cutlayer.model.cost import CostModel
from cutlayer.model.part import WholePart, model_inputs
from cutlayer.model.pruned import save_pruned
from cutlayer.model.trainable import OptimizerSettings, Trainable
from cutlayer.policies.prune import Prune
from cutlayer.report.listing import Listing
from cutlayer.report.summary import peak_memory_bytes
from cutlayer.types import Batch, DevicePlan, Kept
from jobs import JOBS, LEARNING_RATE, Job, random_batches
from memory import floor
from tables import in_fresh_process, publish

RATIOS = (0.0, 0.3, 0.5)
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One ratio. Times are medians of processor seconds."""

    ratio: float
    heads: int
    channels: int
    inference_seconds: float
    step_seconds: float
    exported_seconds: float
    step_flops: float
    weights_bytes: int
    inference_bytes: int
    step_bytes: int


def adapted(job: Job) -> Job:
    """The job with LoRA on every linear layer: what is pruned is scored by it."""
    return replace(job, lora=LoraSettings(job.lora.rank, job.lora.alpha, targets=("all-linear",)))


def kept_at(base: Base, ratio: float) -> Kept:
    """The units that are left on a device that pruned to this ratio, if its last units mattered least."""
    heads, channels = (tuple(range(left)) for left in base.structure.left(ratio))
    return Kept((heads,) * base.num_blocks, (channels,) * base.num_blocks)


class Contender:
    """A model at one ratio, with an adapter of its own."""

    def __init__(self, job: Job, ratio: float) -> None:
        self.base = Base(job.settings)
        self.kept = kept_at(self.base, ratio)
        self.part: WholePart = self.base.pruned(self.kept)
        self.adapter = self.base.initial_adapter(0)
        self._trainable = Trainable(self.base.structure.slice_all(self.adapter, self.kept), OptimizerSettings())

    def infer(self, batch: Batch) -> None:
        self.part.use(self._trainable.parameters)
        self.part.model.eval()
        with torch.inference_mode():
            self.part.model(**model_inputs(batch))
        self.part.model.train()

    def step(self, batch: Batch) -> None:
        self.part.use(self._trainable.parameters)
        self.part.loss(batch).backward()
        self._trainable.step(LEARNING_RATE)

    def exported(self, job: Job) -> torch.nn.Module:
        """The same model as a run leaves it, without its adapter."""
        card = AdapterCard(job.model, job.task, tuple(map(str, range(job.num_labels))), self.base.pooling, 0, 0, {})
        maker = AutoModelForCausalLM if job.task == "causal-lm" else AutoModelForSequenceClassification
        with tempfile.TemporaryDirectory() as folder:
            save_pruned(Path(folder) / "pruned", self.adapter, self.base, card, self.kept)
            model: torch.nn.Module = maker.from_pretrained(Path(folder) / "pruned").eval()
        return model


def times(job: Job, ratios: Sequence[float], repeats: int) -> list[tuple[float, float, float]]:
    """Inference, step and inference of the exported model, for each ratio, taking turns."""
    torch.set_num_threads(1)
    contenders = [Contender(job, ratio) for ratio in ratios]
    exports = [contender.exported(job) for contender in contenders]
    [batch] = random_batches(job, 1)
    inputs = model_inputs(batch)

    def plain(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            model(**inputs)

    found: list[list[list[float]]] = [[[], [], []] for _ in ratios]
    for repeat in range(repeats + 1):
        for contender, model, taken in zip(contenders, exports, found, strict=True):
            works = (lambda c=contender: c.infer(batch), lambda c=contender: c.step(batch), lambda m=model: plain(m))
            for work, kind in zip(works, taken, strict=True):
                seconds = _processor_seconds(work)
                if repeat:  # the first is for warming up
                    kind.append(seconds)
    return [(statistics.median(a), statistics.median(b), statistics.median(c)) for a, b, c in found]


def _processor_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_of(job: Job, ratio: float, what: str) -> int:
    """Peak bytes of a process that does a few of these."""
    torch.set_num_threads(1)
    contender = Contender(job, ratio)
    for batch in random_batches(job, 2):
        getattr(contender, what)(batch)
    return peak_memory_bytes()


def weights_of(job: Job, ratio: float) -> int:
    """Bytes of the frozen tensors of the part."""
    part = Contender(job, ratio).part
    trained = {slot.module._parameters[slot.attribute] for slot in part.slots}
    return sum(p.numel() * p.element_size() for p in part.model.parameters() if p not in trained)


def measure(job: Job, ratios: Sequence[float], repeats: int) -> list[Row]:
    """All ratios, side by side."""
    taken, ground = in_fresh_process(times, job, ratios, repeats), floor()
    costs = CostModel(job.settings).of(SHAPE.flow)
    rows = []
    for ratio, (inference, step, exported) in zip(ratios, taken, strict=True):
        plan = DevicePlan("device", costs.num_blocks, top=costs.num_blocks).having(Prune(ratio))
        cost = costs.device(plan, job.num_samples, job.num_tokens)
        heads, channels = Base(job.settings, "meta").structure.left(ratio)
        rows.append(
            Row(
                ratio,
                heads,
                channels,
                inference,
                step,
                exported,
                cost.forward_flops + cost.backward_flops,
                in_fresh_process(weights_of, job, ratio),
                in_fresh_process(peak_of, job, ratio, "infer") - ground,
                in_fresh_process(peak_of, job, ratio, "step") - ground,
            )
        )
    return rows


def table_of(rows: Sequence[Row]) -> Listing:
    """The rows as ratios to the first."""
    numbers = ("infer", "step", "export", "FLOPs", "weights", "mem inf", "mem step")
    table = Listing("", "heads", "FFN", *numbers, title="over the unpruned model")
    for row in rows:
        shares = [
            getattr(row, name) / getattr(rows[0], name)
            for name in (
                "inference_seconds",
                "step_seconds",
                "exported_seconds",
                "step_flops",
                "weights_bytes",
                "inference_bytes",
                "step_bytes",
            )
        ]
        table.add_row(f"{row.ratio:.0%}", str(row.heads), str(row.channels), *(f"{share:.3f}" for share in shares))
    first = rows[0]
    table.caption = (
        f"unpruned: inference {1e3 * first.inference_seconds:.1f} ms, step {1e3 * first.step_seconds:.1f} ms, "
        f"weights {first.weights_bytes / MIB:.1f} MiB, memory {first.inference_bytes / MIB:.0f} and "
        f"{first.step_bytes / MIB:.0f} MiB"
    )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(JOBS), default="minilm")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/pruning.json"))
    given = parser.parse_args(argv)
    rows = measure(adapted(JOBS[given.model]), given.ratios, given.repeats)
    settings: dict[str, Any] = {"model": given.model, "ratios": given.ratios, "repeats": given.repeats}
    publish([table_of(rows)], given.json, settings, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
