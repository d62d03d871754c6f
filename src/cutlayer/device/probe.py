"""A device measures itself before it trains: memory, speed, link. The result is a `DeviceProfile` as planners know it.

Shapes: N tokens of all texts, D hidden size, F channels of the feed-forward, R rank.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from cutlayer.device.process import for_a_part

PROBE_SECONDS = 0.3
FEWEST_REPEATS = 3
SIZES = {"cpu": (128, 512), "cuda": (1024, 1024)}
"""Tokens and hidden size of the probe: matrices as large as a small model's on a CPU, enough work for a GPU."""
RANK = 8

Transfer = tuple[int, float]
"""Bytes, and the seconds from the first one's departure to the answer that the last one is there."""


@dataclass(frozen=True, slots=True)
class LinkRates:
    """The rates and the latency that the network gives.

    Attributes:
      up_bits_per_second: rate towards the server.
      down_bits_per_second: rate from the server.
      latency_seconds: one way.
    """

    up_bits_per_second: float
    down_bits_per_second: float
    latency_seconds: float


@dataclass(frozen=True, slots=True)
class Probed:
    """The memory and the speed that a device found out about itself.

    Attributes:
      memory_bytes: what its part of the model may take of what is free.
      flops_per_second: what training reaches, so no efficiency is to be taken off.
    """

    memory_bytes: int
    flops_per_second: float


def probe(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> Probed:
    """Measures memory and speed of what computes here; takes a third of a second, on a slow device some more.

    Args:
      device: What computes.
      dtype: Of the run's frozen weights.
      clock: Seconds.
    """
    step, flops = training_step(device, dtype)
    speed, free = flops / median_seconds(step, clock), free_memory(device)
    return Probed(for_a_part(free) if device.type == "cpu" else free, speed)


def median_seconds(step: Callable[[], object], clock: Callable[[], float], budget: float = PROBE_SECONDS) -> float:
    """Seconds of one step: the median over as many as fit into the budget, and over no fewer than three.

    The first is not counted: it loads code and touches memory for the first time.
    """
    step()
    started, taken = clock(), list[float]()
    while len(taken) < FEWEST_REPEATS or clock() - started < budget:
        before = clock()
        step()
        taken.append(clock() - before)
    return max(statistics.median(taken), 1e-9)


def training_step(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """A feed-forward with LoRA, forward and backward, as in the middle of a model; and its floating-point operations.

    The frozen matrices get no gradient, the activations do. Operations are counted as `model/cost.py` counts those of
    a part, so that the quotient means the same: matrix products alone.
    """
    num_tokens, hidden = SIZES[device.type]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, as_dtype: torch.dtype) -> Tensor:
        drawn = torch.randn(shape, generator=generator).div_(shape[-1] ** 0.5)
        return drawn.to(device=device, dtype=as_dtype)

    x_ND = draw(num_tokens, hidden, as_dtype=dtype).requires_grad_()
    up_FD, down_DF = draw(4 * hidden, hidden, as_dtype=dtype), draw(hidden, 4 * hidden, as_dtype=dtype)
    a_RD = draw(RANK, hidden, as_dtype=torch.float32).requires_grad_()
    b_FR = draw(4 * hidden, RANK, as_dtype=torch.float32).requires_grad_()

    def step() -> None:
        normed_ND = functional.layer_norm(x_ND, (hidden,))
        low_NR = functional.linear(normed_ND.float(), a_RD)
        channels_NF = functional.linear(normed_ND, up_FD) + functional.linear(low_NR, b_FR).to(dtype)
        out_ND = x_ND + functional.linear(functional.gelu(channels_NF), down_DF)
        torch.autograd.grad(out_ND.sum(), (x_ND, a_RD, b_FR))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    frozen = 2 * 2 * up_FD.numel()  # two matrices; forward, and backward to what went in
    trained = 3 * (a_RD.numel() + b_FR.numel())  # backward to the factors as well
    return step, 2.0 * num_tokens * (frozen + trained)


def link_rates(up: Sequence[Transfer], down: Sequence[Transfer], round_trips: Sequence[float]) -> LinkRates:
    """Rates and latency from timed transfers.

    A transfer's time ends with an answer, so a round trip is taken off; but never more than half of the time: a
    transfer that is too short to tell would look infinitely fast.

    Args:
      up: Transfers to the server, one or more; of a megabyte each they tell most.
      down: Transfers from the server.
      round_trips: Seconds of messages of a few bytes and their answers, one or more.
    """
    round_trip = statistics.median(round_trips)

    def rate(transfers: Sequence[Transfer]) -> float:
        return statistics.median(
            8 * num_bytes / max(seconds - round_trip, seconds / 2, 1e-9) for num_bytes, seconds in transfers
        )

    return LinkRates(rate(up), rate(down), round_trip / 2)


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the device computes: on the GPU, or in this machine or container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory(psutil.virtual_memory().available, Path("/"))


def free_host_memory(available_bytes: int, root: Path) -> int:
    """Bytes that are free in the machine, or in the tightest control group around this process if that is less.

    Args:
      available_bytes: Of the machine.
      root: Where `proc` and `sys` are; systems without control groups have no such files.
    """
    return max(1, min([available_bytes, *_free_in_groups(root)]))


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yields the bytes that are left below each memory limit around this process; cached file contents can go."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = mount / path.lstrip("/")
        for group in (own, *own.parents[: len(own.parts) - len(mount.parts)]):
            limit, used = (_number(group / name) for name in names[:2])
            if limit is not None and used is not None:
                statistics_file = group / "memory.stat"
                text = statistics_file.read_text() if statistics_file.is_file() else ""
                cached = re.search(rf"^{names[2]} (\d+)$", text, re.MULTILINE)
                yield limit - used + (int(cached[1]) if cached else 0)


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, as for a group without a limit."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else None
