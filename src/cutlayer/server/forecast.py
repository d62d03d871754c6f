"""When a device's next activations will arrive, and how long each thing takes: what an order policy plans with.

The latency model of Memory-Efficient SFL (papers' section on scheduling): device forward, upload, server step,
download, device backward; FLOPs over speed and bytes over rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.packing import UNCOMPRESSED, Compression, codec_under
from cutlayer.policies.order import Job
from cutlayer.types import Costs, DevicePlan
from cutlayer.wire.codecs import packed_form
from cutlayer.wire.messages import Role

ROLES_AT_THE_CUT: tuple[Role, Role] = ("activations", "gradients")
"""What crosses the cut in a local step: up, and down."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of each piece of one local step, in the order in which they happen."""

    forward: float
    upload: float
    server: float
    download: float
    backward: float

    @property
    def head(self) -> float:
        """Until the activations are at the server."""
        return self.forward + self.upload

    @property
    def tail(self) -> float:
        """After the server's step."""
        return self.download + self.backward

    @property
    def total(self) -> float:
        return self.head + self.server + self.tail


class CrossingCosts(Costs, Protocol):
    """The cost model, and what of it decides the bytes that cross the cut."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def adapters_on_device(self, plan: DevicePlan) -> int:
        """Number of LoRA layers that the device trains; with none, nothing comes down to it."""


class Forecast:
    """Predicts steps from the fleet's profiles, the cost model and how what crosses the cut is packed.

    Each as if no other device sent or was sent anything meanwhile: where the server's connection is shared
    (`fleet/link.py`), a step may take longer.

    A real fleet is measured anew for every round, which then has a forecast of its own.
    """

    def __init__(self, fleet: Fleet, costs: CrossingCosts, compression: Compression = UNCOMPRESSED) -> None:
        self._costs, self._compression = costs, compression
        self._server_flops = fleet.server.effective_flops
        self._rates = fleet.rates
        self._profiles: dict[str, DeviceProfile] = {device.name: device for device in fleet.devices}
        self._steps: dict[tuple[DevicePlan, int, int], StepTimes] = {}  # few shapes, each asked for many times

    def step(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> StepTimes:
        """One batch of this shape, or part of one; the server has no part in that of a device with the head."""
        asked = plan, num_samples, num_tokens
        if asked not in self._steps:
            self._steps[asked] = self._step(*asked)
        return self._steps[asked]

    def _step(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> StepTimes:
        profile = self._profiles[plan.device]
        device = self._costs.device(plan, num_samples, num_tokens)
        forward = device.forward_flops / profile.effective_flops
        backward = device.backward_flops / profile.effective_flops
        if plan.head:
            return StepTimes(forward, upload=0.0, server=0.0, download=0.0, backward=backward)
        server = self._costs.server(plan, num_samples, num_tokens)
        up_bytes, down_bytes = self.crossing_bytes(plan, num_samples, num_tokens)
        up_bits_per_second, down_bits_per_second = self._rates(profile)
        return StepTimes(
            forward=forward,
            upload=8 * up_bytes / up_bits_per_second + profile.latency_seconds,
            server=(server.forward_flops + server.backward_flops) / self._server_flops,
            download=8 * down_bytes / down_bits_per_second + profile.latency_seconds,
            backward=backward,
        )

    def local_step(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> float:
        """Seconds of a whole local step of a device for which the server always has time, part after part.

        Device, upload, server and download each do one thing at a time and do not wait for each other, but that the
        device has at most `in_flight` parts under way.
        """
        sizes, latency = plan.parts_of(num_samples), self._profiles[plan.device].latency_seconds
        parts = [self.step(plan, size, num_tokens) for size in sizes]
        if plan.head:
            return sum(part.total for part in parts)
        device = up = server = down = 0.0  # from when on each is free
        heard: list[float] = []
        for number, part in enumerate(parts):
            if number >= plan.in_flight:
                earlier = number - plan.in_flight
                device = max(device, heard[earlier]) + parts[earlier].backward
            device += part.forward
            up = max(up, device) + part.upload - latency
            server = max(server, up + latency) + part.server
            down = max(down, server) + part.download - latency
            heard.append(down + latency)
        for part, answer in list(zip(parts, heard, strict=True))[-plan.in_flight :]:
            device = max(device, answer) + part.backward
        return device

    def crossing_bytes(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> tuple[int, int]:
        """What one local step sends over the cut, packed: activations up, gradients down."""
        if plan.head:
            return 0, 0
        shape_BTD = (num_samples, num_tokens, self._costs.hidden_size)
        up, down = (
            packed_form(codec_under(plan, role, self._compression.of(role)), shape_BTD, self._costs.dtype).nbytes
            for role in ROLES_AT_THE_CUT
        )
        return up, down if self._costs.adapters_on_device(plan) else 0

    def job(self, plan: DevicePlan, num_samples: int, num_tokens: int, release_seconds: float) -> Job:
        """The step as the scheduling problem sees it."""
        times = self.step(plan, num_samples, num_tokens)
        speed = self._profiles[plan.device].effective_flops
        return Job(
            device=plan.device,
            release_seconds=release_seconds,
            work_seconds=times.server,
            tail_seconds=times.tail,
            ratio=self._costs.adapters_on_device(plan) / speed,
        )
