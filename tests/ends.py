"""One server or one device, without a run around it."""

from __future__ import annotations

from collections.abc import Sequence

from cutlayer.device.device import Device
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.profile import Fleet
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.testing.playground import FlatCosts, ListedBatches, learning_rate
from cutlayer.types import Batch, Event
from cutlayer.wire.messages import Activations

ADAMW = TrainSettings(OptimizerSettings())


def server_for(base: Base, fleet: Fleet, events: list[Event] | None = None, settings: TrainSettings = ADAMW) -> Server:
    """A server of this fleet, at 30 GFLOP/s, on the costs of the playground."""
    costs = FlatCosts(base.num_blocks)
    record = (events if events is not None else []).append
    machine = ModelledMachine("server", fleet.server.effective_flops, record)
    start = base.initial_adapter(0)
    forecast = Forecast(fleet, costs)  # type: ignore[arg-type]
    return Server("run", base, start, machine, costs, settings, learning_rate, forecast, 10)  # type: ignore[arg-type]


def device_for(
    base: Base,
    batches: Sequence[Batch],
    events: list[Event] | None = None,
    settings: TrainSettings = ADAMW,
    *,
    name: str = "device-0",
) -> Device:
    """A device, at 1 GFLOP/s, on the costs of the playground."""
    machine = ModelledMachine(name, 1e9, (events if events is not None else []).append)
    costs = FlatCosts(base.num_blocks)
    return Device(name, base, ListedBatches(batches), machine, costs, settings)  # type: ignore[arg-type]


def activations_for(base: Base, batch: Batch, cut: int, *, device: str = "device-0", step: int = 0) -> Activations:
    """What a device with an untrained adapter would send for this batch."""
    part = base.device_part(cut)
    part.use(base.initial_adapter(0))
    h_BTD = part.forward(model_inputs(batch)).detach()
    return Activations("run", 0, step, device, h_BTD, batch.attention_mask_BT.bool(), batch.labels.int(), batch.weight)
