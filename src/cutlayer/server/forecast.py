"""The forecast that an order policy plans with: when a device's next activations arrive, how long each thing takes.

The latency model of Memory-Efficient SFL (papers' section on scheduling): device forward, upload, server step,
download, device backward; FLOPs over speed and bytes over rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from cutlayer.fleet.allotment import frequency_of
from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.packing import UNCOMPRESSED, Compression, codec_under
from cutlayer.policies.order import Job
from cutlayer.types import Costs, DevicePlan
from cutlayer.wire.codecs import packed_form
from cutlayer.wire.messages import Role

ROLES_AT_THE_CUT: tuple[Role, Role] = ("activations", "gradients")
"""Roles of the tensors that cross the cut in a local step: up, and down."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of each piece of one local step, in the order in which they happen.

    Where a device has the labels, what lies between the server's two pieces of work is in `download` and `backward`.
    """

    forward: float
    upload: float
    server: float
    download: float
    backward: float

    @property
    def head(self) -> float:
        """Seconds until the activations are at the server."""
        return self.forward + self.upload

    @property
    def tail(self) -> float:
        """Seconds after the server's step."""
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
        speed = profile.effective_flops * frequency_of(plan)
        if plan.alone:
            forward, backward = device.forward_flops / speed, device.backward_flops / speed
            return StepTimes(forward, upload=0.0, server=0.0, download=0.0, backward=backward)
        below = self._costs.device(plan.below, num_samples, num_tokens)
        above_flops = device.forward_flops - below.forward_flops + device.backward_flops - below.backward_flops
        forward, backward = below.forward_flops / speed, (below.backward_flops + above_flops) / speed
        server = self._costs.server(plan, num_samples, num_tokens)
        up_bytes, down_bytes = self.crossing_bytes(plan, num_samples, num_tokens)
        up_bits_per_second, down_bits_per_second = self._rates(profile)
        first_bytes, returned_bytes = up_bytes, 0
        if plan.head:  # what crosses between the server's two pieces of work comes after the first of them
            first_bytes = self._packed_bytes(plan, "activations", num_samples, num_tokens)
            returned_bytes = up_bytes - first_bytes
        back_and_forth = 8 * returned_bytes / up_bits_per_second + 2 * profile.latency_seconds * plan.head
        return StepTimes(
            forward=forward,
            upload=8 * first_bytes / up_bits_per_second + profile.latency_seconds,
            server=(server.forward_flops + server.backward_flops) / self._server_flops,
            download=8 * down_bytes / down_bits_per_second + profile.latency_seconds + back_and_forth,
            backward=backward,
        )

    def local_step(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> float:
        """Seconds of a whole local step of a device for which the server always has time, part after part.

        Device, upload, server and download each do one thing at a time and do not wait for each other, but that the
        device has at most `in_flight` parts under way.
        """
        sizes, latency = plan.parts_of(num_samples), self._profiles[plan.device].latency_seconds
        parts = [self.step(plan, size, num_tokens) for size in sizes]
        if plan.alone:
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
        """Bytes that one local step sends over the cut, packed: activations up, gradients down.

        Over two cuts where the device has the labels: the server's activations come down, their gradients go up.
        """
        if plan.alone:
            return 0, 0
        of_activations, of_gradients = (
            self._packed_bytes(plan, role, num_samples, num_tokens) for role in ROLES_AT_THE_CUT
        )
        down = of_gradients if self._costs.adapters_on_device(plan.below) else 0
        return of_activations + of_gradients * plan.head, down + of_activations * plan.head

    def _packed_bytes(self, plan: DevicePlan, role: Role, num_samples: int, num_tokens: int) -> int:
        codec = codec_under(plan, role, self._compression.of(role))
        return packed_form(codec, (num_samples, num_tokens, self._costs.hidden_size), self._costs.dtype).nbytes

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
