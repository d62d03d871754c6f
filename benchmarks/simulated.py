"""A server and devices as a simulated run wires them, on modelled machines whose events nobody keeps."""

from __future__ import annotations

from cutlayer.device.device import Device
from cutlayer.device.talks.split import SHAPE
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.model.base import Base
from cutlayer.model.cost import ShapedCosts
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.state import State
from cutlayer.types import Batch, Event
from jobs import LEARNING_RATE, Job

RUN = "benchmark"


class Cycle:
    """A device's batches, over and over."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches, self._next = batches, 0

    def next(self, batch_size: int | None = None) -> Batch:
        batch = self._batches[self._next % len(self._batches)]
        assert batch_size in (None, batch.num_samples), "the plan asks for the job's batch size"
        self._next += 1
        return batch

    def state(self) -> State:
        return State({"next": self._next})

    def load(self, state: State) -> None:
        self._next = state.facts["next"]


def equal_fleet(num_devices: int) -> Fleet:
    """A fleet of so many devices of 0.3 TFLOP/s on 100 Mbit/s, and a server of 15 TFLOP/s."""
    devices = tuple(
        DeviceProfile(
            name=f"device-{index:02d}",
            flops_per_second=1e12,
            efficiency=0.3,
            memory_bytes=2**34,
            up_bits_per_second=1e8,
            down_bits_per_second=1e8,
            latency_seconds=0.005,
        )
        for index in range(num_devices)
    )
    server = ServerProfile(flops_per_second=5e13, efficiency=0.3, memory_bytes=2**34)
    return Fleet(name=f"{num_devices} equal devices", source="made up", server=server, devices=devices)


def make_server(job: Job, base: Base, costs: ShapedCosts, fleet: Fleet) -> Server:
    """The server of a run at a constant learning rate."""
    return Server(
        RUN,
        base,
        base.initial_adapter(seed=0),
        _machine(fleet.server),
        costs,
        TrainSettings(OptimizerSettings()),
        lambda _round, _step: LEARNING_RATE,
        Forecast(fleet, costs),
        job.num_tokens,
    )


def make_device(profile: DeviceProfile, base: Base, costs: ShapedCosts, batches: list[Batch]) -> Device:
    """One device of that run."""
    settings = TrainSettings(OptimizerSettings())
    return Device(profile.name, base, Cycle(batches), _machine(profile), costs, settings, SHAPE)


def _machine(profile: DeviceProfile | ServerProfile) -> ModelledMachine:
    return ModelledMachine(profile.name, profile.effective_flops, forget)


def forget(_event: Event) -> None:
    """Drops an event that nobody wants."""
