"""When a device's next activations will arrive, and how long each thing takes: what an order policy plans with.

The latency model of Memory-Efficient SFL (papers' section on scheduling): device forward, upload, server step,
download, device backward; FLOPs over speed and bytes over rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.model.cost import CostModel
from cutlayer.policies.order import Job
from cutlayer.types import DevicePlan


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


class Forecast:
    """Predicts steps from the fleet's profiles and the cost model."""

    def __init__(self, fleet: Fleet, costs: CostModel) -> None:
        self._costs = costs
        self._server_flops = fleet.server.effective_flops
        self._profiles: dict[str, DeviceProfile] = {device.name: device for device in fleet.devices}

    @cache  # noqa: B019  (one forecast per run, and batches have few shapes; it is asked several times per step)
    def step(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> StepTimes:
        """One local step with a batch of this shape; the server has no part in that of a device with the head."""
        profile = self._profiles[plan.device]
        device = self._costs.device(plan, num_samples, num_tokens)
        forward = device.forward_flops / profile.effective_flops
        backward = device.backward_flops / profile.effective_flops
        if plan.head:
            return StepTimes(forward, upload=0.0, server=0.0, download=0.0, backward=backward)
        server = self._costs.server(plan, num_samples, num_tokens)
        bits = 8 * self._costs.activation_bytes(num_samples, num_tokens)
        down_bits = bits if self._costs.adapters_on_device(plan) else 0
        return StepTimes(
            forward=forward,
            upload=bits / profile.up_bits_per_second + profile.latency_seconds,
            server=(server.forward_flops + server.backward_flops) / self._server_flops,
            download=down_bits / profile.down_bits_per_second + profile.latency_seconds,
            backward=backward,
        )

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
