"""Tells before the first round what a run has understood: who has which rows, what is trained, what leaves a device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from cutlayer.fleet.profile import MEASURED
from cutlayer.methods.described import spelled
from cutlayer.methods.method import Method
from cutlayer.methods.table import found
from cutlayer.policies.plan import Situation
from cutlayer.report.human import human_bytes
from cutlayer.report.listing import Listing
from cutlayer.run.inputs import ServerInputs
from cutlayer.run.leaving import assigned, leaving, sentences
from cutlayer.types import Adapter, DevicePlan, RoundPlan

Noticed = Callable[[str | Listing], None]
"""Takes what a person should know, to be shown at once: a line, or a table."""

MOST_DEVICES = 12
"""The most devices that a table shows; for more there is a line in its place."""
WILD_RATE = 0.1
"""A learning rate above it is told: adapters learn at thousandths."""


def unnoticed(_told: str | Listing) -> None:
    """Tells nobody."""


def understood(
    inputs: ServerInputs,
    method: Method,
    situation: Situation,
    plan: RoundPlan,
    rows: Mapping[str, int],
    adapter: Adapter,
) -> Iterator[str | Listing]:
    """The lines and tables that are told, in order.

    Args:
      inputs: What the run is made of.
      method: How it decides.
      situation: In which the first round is planned.
      plan: Of the first round.
      rows: By device, of its data.
      adapter: The full adapter, which is trained.
    """
    yield _method_line(inputs)
    yield _trained_line(inputs, method, adapter)
    yield from _devices(inputs, situation, plan, rows)
    yield from sentences(leaving(assigned(plan, inputs.run_id), inputs, method), task=inputs.config.data.task)
    yield from loud(inputs, plan)


def loud(inputs: ServerInputs, plan: RoundPlan) -> Iterator[str]:
    """Lines about settings that are most likely not meant."""
    blocks = inputs.base.num_blocks
    if plan.devices and all(device.cut == blocks and not device.alone for device in plan.devices):
        yield (
            f"NOTHING IS SPLIT: every device holds all {blocks} of {blocks} blocks, and the server has only the head. "
            "Try -o method.cut=latency or a number of blocks (`cutlayer plan` shows what each takes), or let devices "
            "lend fewer (max_blocks)."
        )
    rate = inputs.config.train.lr
    if rate > WILD_RATE:
        yield (
            f"A WILD LEARNING RATE: {rate:g}. Adapters learn at 1e-4 to 1e-2, and above {WILD_RATE:g} the loss most "
            "likely grows without end. Lower --lr."
        )


def blocks_of(device: DevicePlan, num_blocks: int) -> str:
    """`1 of 6`: how much of the model a device holds."""
    if device.alone and device.cut == num_blocks:
        return f"all {num_blocks}"
    return f"{device.cut} of {num_blocks}"


def _method_line(inputs: ServerInputs) -> str:
    method = inputs.config.method
    row = found(method.name, method.sha256)
    options = ", ".join(f"{key}={spelled(value)}" for key, value in method.options.items())
    return f"method: {row.name} ({options or 'no options'}): {row.summary}"


def _trained_line(inputs: ServerInputs, method: Method, adapter: Adapter) -> str:
    if method.moved is not None:
        return "trained: the weights of the model itself, along seeds"
    lora, base = inputs.config.lora, inputs.base
    number = sum(tensor.numel() for tensor in adapter.values())
    head = sum(tensor.numel() for name, tensor in adapter.items() if ".lora_" not in name)
    layers = len(base.modules)
    with_head = f", {head:,} of them in the head" if head else ""
    return f"trained: {number:,} parameters, LoRA of rank {lora.rank} beside {layers} layers{with_head}"


def _devices(
    inputs: ServerInputs, situation: Situation, plan: RoundPlan, rows: Mapping[str, int]
) -> Iterator[str | Listing]:
    blocks, where = inputs.base.num_blocks, _where(inputs)
    if len(plan.devices) > MOST_DEVICES:
        cuts, own = [device.cut for device in plan.devices], [rows.get(device.device, 0) for device in plan.devices]
        yield (
            f"{len(plan.devices):,} devices{where}: {min(own):,} to {max(own):,} rows each (median "
            f"{statistics.median(own):,.0f}), {min(cuts)} to {max(cuts)} of {blocks} blocks"
        )
        return
    classes = [name for name in inputs.labels if situation.label_counts]
    shown = Listing("device", numbers=("rows", "blocks", "memory", "of"), most=("rows", "blocks"), prose=("classes",))
    if classes:
        shown.add_column("classes", prose=True)
    for device in plan.devices:
        counts = situation.label_counts.get(device.device, ())
        shown.add_row(
            device.device,
            f"{rows.get(device.device, 0):,}",
            blocks_of(device, blocks),
            human_bytes(situation.device_bytes(device)),
            human_bytes(situation.profile(device.device).memory_bytes),
            *([_counted(classes, counts)] if classes else []),
        )
    yield shown


def _where(inputs: ServerInputs) -> str:
    fleet = inputs.config.fleet
    return f" of {fleet}" if isinstance(fleet, str) and fleet != MEASURED else ""


def _counted(classes: Sequence[str], counts: Sequence[int]) -> str:
    """`good 12, bad 9`; of many classes the commonest."""
    ranked = sorted(zip(classes, counts, strict=False), key=lambda pair: -pair[1])
    more = f", {len(ranked) - 6} more" if len(ranked) > 6 else ""
    return ", ".join(f"{name} {count:,}" for name, count in ranked[:6]) + more
