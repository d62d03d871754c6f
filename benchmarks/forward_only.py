"""The cost of a device that never runs backward: time of a step by P-RGE's forms, memory beside inference and training.

    python benchmarks/forward_only.py

The first table is a local step of P-RGE (arXiv 2409.15520), q queries that share a batch of 16: all 2q losses in one
forward pass (dual), one sign at a time (single), the engine's recurrence, and one loss at a time (sequential), which
the others are held against. Forms take turns in one process with one thread, in one order and then in the other; ratios
are medians over turns of processor time.

The second table is peak memory (VmHWM), each row a process of its own, of a few steps at the same batch: inference
(one forward pass, no graph), FedKSeed (arXiv 2312.06353) on all weights and on LoRA, P-RGE's dual form and, with as
many samples for each query, its sequential one; LoRA by gradients in a plain PEFT loop and all weights by gradients.
HO-SFL (arXiv 2603.14773) holds some blocks, and is held against the same blocks run forward and trained by gradients.
"net" is without a process that has imported torch, transformers and peft.

All are the primitives that the devices' talks call (`device/talks/queries.py`, `seeds.py`, `hybrid.py`), without a
network and without batches being read. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cutlayer.device.talks.seeds import standing_of
from cutlayer.model.adapter import split_adapter
from cutlayer.model.base import Base
from cutlayer.model.dropout import still
from cutlayer.model.kseed import Walk
from cutlayer.model.optimizers import zeroth
from cutlayer.model.part import model_inputs
from cutlayer.model.recurrence import Recurrence
from cutlayer.model.replicas import replicated
from cutlayer.model.trainable import OptimizerSettings, Trainable
from cutlayer.model.zeroth import lora_fa, mean_terms, projected, two_sided
from cutlayer.policies.queries import FORMS, Queries
from cutlayer.policies.seed_search import seed_search
from cutlayer.report.listing import Listing
from cutlayer.report.summary import peak_memory_bytes
from jobs import JOBS, LEARNING_RATE, Job, plain_model, random_batches
from memory import floor, mib
from models import model_folder
from tables import in_fresh_process, publish

SAMPLES = 16
"""q x batch, as in the paper."""
EPSILON = 1e-2
SEEDS = 4096
STEPS = 2  # steps are alike
REFERENCE = "sequential"

Step = Callable[[int], object]
"""A local step, told its number."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One form with so many queries: seconds of processor time of a step, and over the sequential form's."""

    queries: int
    form: str
    seconds: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes of one process, without the floor, beside that of what it is held against."""

    what: str
    net_bytes: int
    over_inference: float


def sized(job: Job, num_samples: int) -> Job:
    return replace(job, num_samples=num_samples)


def queries_step(job: Job, count: int, form: str) -> Step:
    """P-RGE on the whole model, `SAMPLES // count` samples for each query."""
    base = Base(job.settings)
    part, batches = base.whole(), random_batches(sized(job, SAMPLES // count), STEPS)
    parameters = Trainable(base.initial_adapter(seed=0), OptimizerSettings()).parameters
    asked, moving = Queries(count, EPSILON, form), {name: parameters[name] for name in lora_fa(parameters)}
    recurrence, last = Recurrence(moving, count, EPSILON), (0.0, list[float]())

    def ask(step: int) -> None:
        seeds = [step * count + query for query in range(count)]
        with torch.no_grad():
            slopes, _loss = two_sided(
                part, batches[step % STEPS], parameters, moving, seeds, EPSILON, at_once=asked.at_once
            )
            zeroth(mean_terms(seeds, slopes))(moving, {}, LEARNING_RATE)

    def recur(step: int) -> None:
        nonlocal last
        seeds = [step * count + query for query in range(count)]
        with torch.no_grad(), replicated(part, parameters, recurrence.next(seeds, *last)):
            losses_2Q = part.losses(batches[step % STEPS], asked.passes)
        plus_Q, minus_Q = losses_2Q[:count].tolist(), losses_2Q[count:].tolist()
        last = LEARNING_RATE, [(p - m) / (2 * EPSILON) for p, m in zip(plus_Q, minus_Q, strict=True)]

    return recur if form == "recurrence" else ask


def seeds_step(job: Job, *, full: bool) -> Step:
    """FedKSeed on the whole model."""
    base, batches = Base(job.settings), random_batches(job, STEPS)
    standing = standing_of(base, seed_search(SEEDS, 0, 5e-4, 0.0, full=full), 0)
    part, walk = base.whole(frozenset() if full else None), Walk(standing, torch.zeros(SEEDS))

    def step(number: int) -> None:
        part.use({name: standing.tensors[name] for name in part.names})
        with torch.no_grad(), still(part.model):
            walk.step(number, lambda: part.loss(batches[number % STEPS]), epsilon=5e-4, rate=3e-7)

    return step


def inference_step(job: Job) -> Step:
    """The loss of the whole model, and no more."""
    base, batches = Base(job.settings), random_batches(job, STEPS)
    part = base.whole()
    part.use(base.initial_adapter(seed=0))

    def step(number: int) -> None:
        with torch.no_grad(), still(part.model):
            part.loss(batches[number % STEPS])

    return step


def gradient_step(job: Job, *, full: bool) -> Step:
    """A plain PEFT loop, or AdamW on all weights."""
    model, batches = plain_model(job), random_batches(job, STEPS)
    if full:
        model.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)

    def step(number: int) -> None:
        batch = batches[number % STEPS]
        model(**model_inputs(batch, "cpu"), labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def device_step(job: Job, kind: str) -> Step:
    """The job's blocks below the cut: only run forward, moved along two directions, or trained by gradients."""
    base, batches = Base(job.settings), random_batches(job, STEPS)
    part = base.device_part(job.cut)
    adapter = split_adapter(base.initial_adapter(seed=0), base.device_names(job.cut))
    trainable = Trainable(adapter, OptimizerSettings())
    part.use(trainable.parameters)

    def step(number: int) -> None:
        inputs = model_inputs(batches[number % STEPS], base.device)
        if kind == "gradients":
            h_BTD = part.forward(inputs)
            h_BTD.backward(torch.randn_like(h_BTD))
            trainable.step(LEARNING_RATE)
            return
        with torch.no_grad():
            h_BTD, seeds = part.forward(inputs), [2 * number, 2 * number + 1]
            if kind == "directions":
                grad_BTD, parameters = torch.randn_like(h_BTD), trainable.parameters
                slopes = projected(part, inputs, parameters, parameters, seeds, 1e-3, h_BTD, grad_BTD)
                trainable.step(LEARNING_RATE, zeroth(mean_terms(seeds, slopes)))

    return step


def peak(make: Callable[..., Step], args: Sequence[object], options: dict[str, object]) -> int:
    """Peak bytes of this process after some steps."""
    torch.set_num_threads(1)
    step = make(*args, **options)
    for number in range(STEPS):
        step(number)
    return peak_memory_bytes()


def memories(job: Job, base_line: int) -> tuple[list[Memory], list[Memory]]:
    """Each way of training the whole model, and each of its lower blocks; inference first."""

    def measured(what: str, make: Callable[..., Step], *args: object, **options: object) -> tuple[str, int]:
        return what, in_fresh_process(peak, make, args, options) - base_line

    job = sized(job, SAMPLES)
    whole = [
        measured("inference", inference_step, job),
        measured("FedKSeed, all weights", seeds_step, job, full=True),
        measured("FedKSeed, LoRA", seeds_step, job, full=False),
        measured("P-RGE, dual, q = 4", queries_step, job, 4, "dual"),
        measured("P-RGE, sequential, q = 4", queries_step, job, 4, "sequential"),
        measured("LoRA by gradients (PEFT)", gradient_step, job, full=False),
        measured("all weights by gradients", gradient_step, job, full=True),
    ]
    lower = [
        measured(f"{job.cut} blocks, forward", device_step, job, "forward"),
        measured(f"{job.cut} blocks, HO-SFL", device_step, job, "directions"),
        measured(f"{job.cut} blocks, by gradients", device_step, job, "gradients"),
    ]
    one, other = ([Memory(what, net, net / rows[0][1]) for what, net in rows] for rows in (whole, lower))
    return one, other


def times(job: Job, counts: Sequence[int], turns: int) -> list[Timed]:
    """Each form with each number of queries."""
    torch.set_num_threads(1)
    rows = []
    for count in counts:
        steps = {form: queries_step(job, count, form) for form in FORMS}
        seconds: dict[str, list[float]] = {form: [] for form in FORMS}
        for turn in range(turns + 1):
            for form in FORMS if turn % 2 else reversed(FORMS):
                began = time.process_time()
                steps[form](turn)
                seconds[form].append(time.process_time() - began)
        kept = {form: values[1:] for form, values in seconds.items()}  # the first turn warms up
        for form, values in kept.items():
            ratios = [one / other for one, other in zip(values, kept[REFERENCE], strict=True)]
            rows.append(Timed(count, form, statistics.median(values), statistics.median(ratios)))
    return rows


def time_table(model: str, rows: Sequence[Timed]) -> Listing:
    result = Listing(title=f"{model}: seconds of processor time of a step, q x batch = {SAMPLES}, and over sequential")
    result.add_column("q", justify="right")
    for form in FORMS:
        result.add_column(form, justify="right")
    for count in dict.fromkeys(row.queries for row in rows):
        of_count = {row.form: row for row in rows if row.queries == count}
        cells = [f"{of_count[form].seconds:.2f} ({of_count[form].ratio:.2f})" for form in FORMS]
        result.add_row(str(count), *cells)
    return result


def memory_table(model: str, rows: Sequence[Memory]) -> Listing:
    result = Listing(title=f"{model}: peak memory in MiB, net of imports (aim for FedKSeed: at most 1.1 of inference)")
    result.add_column("step")
    for heading in ("net", "over forward only"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(row.what, mib(row.net_bytes), f"{row.over_inference:.2f}")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=JOBS, default=["minilm", "gpt2"])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--turns", type=int, default=6, help="of each form, after one that warms up")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/forward_only.json"))
    args = parser.parse_args(arguments)
    tables, result, base_line = [], {}, floor()
    for model in args.models:
        model_folder(model)
        timed = in_fresh_process(times, JOBS[model], args.queries, args.turns)
        whole, lower = memories(JOBS[model], base_line)
        tables += [time_table(model, timed), memory_table(model, [*whole, *lower])]
        result[model] = {"times": [asdict(row) for row in timed], "memory": [asdict(row) for row in [*whole, *lower]]}
    publish(tables, args.json, {"queries": args.queries, "turns": args.turns}, result)


if __name__ == "__main__":
    main()
