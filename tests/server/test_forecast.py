"""The latency model, by hand."""

from __future__ import annotations

import gc
import weakref

import pytest

from cutlayer.fleet.allotment import Allotment
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.packing import compression
from cutlayer.server.forecast import Forecast, StepTimes
from cutlayer.testing.playground import FlatCosts
from cutlayer.types import DevicePlan

SLOW = DeviceProfile(
    name="slow",
    flops_per_second=4e8,
    efficiency=0.25,  # 100 MFLOP/s
    memory_bytes=2**30,
    up_bits_per_second=1e5,
    down_bits_per_second=2e5,
    latency_seconds=0.5,
)
FAST = SLOW.model_copy(update={"name": "fast", "efficiency": 1.0})
FLEET = Fleet(
    name="two",
    source="made up",
    server=ServerProfile(flops_per_second=2e9, efficiency=0.5, memory_bytes=2**30),  # 1 GFLOP/s
    devices=(SLOW, FAST),
)
SAMPLES, TOKENS = 5, 4  # 20 MFLOP per block; 5 x 4 x 16 x 4 bytes = 10,240 bits of activations


def forecast() -> Forecast:
    return Forecast(FLEET, FlatCosts(num_blocks=3))  # type: ignore[arg-type]


def test_a_forecast_that_another_replaces_is_let_go() -> None:
    """A real fleet has a new one in every round."""
    asked = forecast()
    asked.step(DevicePlan("slow", cut=1), SAMPLES, TOKENS)
    alive = weakref.ref(asked)
    del asked
    gc.collect()
    assert alive() is None


def test_a_step_piece_by_piece() -> None:
    times = forecast().step(DevicePlan("slow", cut=1), SAMPLES, TOKENS)
    assert times.forward == pytest.approx(1.1 * 0.2)  # 1.1 blocks of 20 MFLOP at 100 MFLOP/s
    assert times.upload == pytest.approx(0.1024 + 0.5)
    assert times.server == pytest.approx(2 * 2.1 * 0.02)  # forward and backward of 2.1 blocks at 1 GFLOP/s
    assert times.download == pytest.approx(0.0512 + 0.5)
    assert times.backward == pytest.approx(1.1 * 0.2)


@pytest.mark.parametrize(
    ("micro_batches", "overlap", "seconds"),
    [
        (1, True, 0.22 + (0.1024 + 0.5) + 0.084 + (0.0512 + 0.5) + 0.22),
        (5, False, 0.22 + 0.1024 + 0.084 + 0.0512 + 0.22 + 5 * 2 * 0.5),  # the latency is not shared out
    ],
)
def test_a_local_step_in_parts(micro_batches: int, overlap: bool, seconds: float) -> None:
    plan = DevicePlan("slow", cut=1, micro_batches=micro_batches, overlap=overlap)
    assert forecast().local_step(plan, SAMPLES, TOKENS) == pytest.approx(seconds)


def test_a_local_step_of_two_parts_that_overlap() -> None:
    """Device, link and server are each at another part."""
    plan = DevicePlan("slow", cut=1, micro_batches=2)
    first, second = 3 / 5, 2 / 5  # of the batch
    up = [first * (0.22 + 0.1024), first * 0.22 + max(first * 0.1024, second * 0.22) + second * 0.1024]
    served = [up[0] + 0.5 + first * 0.084, max(up[1] + 0.5, up[0] + 0.5 + first * 0.084) + second * 0.084]
    down = [served[0] + first * 0.0512, max(served[1], served[0] + first * 0.0512) + second * 0.0512]
    back = max(down[0] + 0.5, 0.22) + first * 0.22
    seconds = max(down[1] + 0.5, back) + second * 0.22
    assert forecast().local_step(plan, SAMPLES, TOKENS) == pytest.approx(seconds)


def test_heads_tails_and_totals() -> None:
    times = StepTimes(forward=1.0, upload=2.0, server=4.0, download=8.0, backward=16.0)
    assert (times.head, times.tail, times.total) == (3.0, 24.0, 31.0)


def test_speed_is_that_of_the_device_named() -> None:
    slow, fast = (forecast().step(DevicePlan(name, cut=2), SAMPLES, TOKENS) for name in ("slow", "fast"))
    assert slow.forward == pytest.approx(4 * fast.forward)
    assert slow.backward == pytest.approx(4 * fast.backward)
    assert (slow.upload, slow.server, slow.download) == (fast.upload, fast.server, fast.download)


def test_a_frozen_device_gets_no_gradients() -> None:
    """Without blocks there is nothing to send back but the loss, and nothing to compute."""
    times = forecast().step(DevicePlan("slow", cut=0), SAMPLES, TOKENS)
    assert times.download == 0.5
    assert times.backward == 0.0
    assert times.upload == pytest.approx(0.1024 + 0.5)


def test_a_job_is_the_step_as_the_scheduler_sees_it() -> None:
    plan = DevicePlan("slow", cut=2)
    job, times = forecast().job(plan, SAMPLES, TOKENS, 7.5), forecast().step(plan, SAMPLES, TOKENS)
    assert (job.device, job.release_seconds) == ("slow", 7.5)
    assert (job.work_seconds, job.tail_seconds) == (times.server, times.tail)
    assert job.ratio == pytest.approx(4 / 1e8)  # two adapters per block, at 100 MFLOP/s


def test_a_batch_costs_what_its_shape_costs() -> None:
    plan = DevicePlan("slow", cut=1)
    one, two = forecast().step(plan, SAMPLES, TOKENS), forecast().step(plan, 2 * SAMPLES, TOKENS)
    assert two.forward == pytest.approx(2 * one.forward)
    assert two.upload - 0.5 == pytest.approx(2 * (one.upload - 0.5))


def test_what_is_packed_takes_the_time_of_its_bytes() -> None:
    """20 rows of 16 numbers: 20 bytes a row by int8, 4 of 8 bytes by top-k."""
    packed = compression(activations="int8", gradients="topk:0.25")
    asked = Forecast(FLEET, FlatCosts(num_blocks=3), packed)  # type: ignore[arg-type]
    plan = DevicePlan("slow", cut=1)
    times = asked.step(plan, SAMPLES, TOKENS)
    assert asked.crossing_bytes(plan, SAMPLES, TOKENS) == (20 * 20, 20 * 4 * 8)
    assert times.upload == pytest.approx(8 * 400 / 1e5 + 0.5)
    assert times.download == pytest.approx(8 * 640 / 2e5 + 0.5)
    assert asked.crossing_bytes(DevicePlan("slow", cut=0), SAMPLES, TOKENS) == (400, 0)
    assert asked.crossing_bytes(DevicePlan("slow", cut=3, top=3), SAMPLES, TOKENS) == (0, 0)
    assert asked.crossing_bytes(DevicePlan("slow", cut=1, top=3), SAMPLES, TOKENS) == (400 + 640, 640 + 400)


def test_a_device_with_the_labels_has_two_more_crossings() -> None:
    """And its tail after the server's first piece of work; a slower clock is slower."""
    plan, home = DevicePlan("slow", cut=1), DevicePlan("slow", cut=1, top=3)
    away, times = forecast().step(plan, SAMPLES, TOKENS), forecast().step(home, SAMPLES, TOKENS)
    assert (times.forward, times.upload) == (away.forward, away.upload)
    tail_seconds = 2 * 1e6 * 0.1 * SAMPLES * TOKENS / 1e8
    assert times.backward == pytest.approx(away.backward + tail_seconds)
    crossing = 8 * 4 * SAMPLES * TOKENS * 16
    assert times.download == pytest.approx(2 * crossing / 2e5 + crossing / 1e5 + 3 * 0.5)
    assert times.server < away.server + 1e-12
    slow = forecast().step(home.having(Allotment(0.5)), SAMPLES, TOKENS)
    assert slow.forward == pytest.approx(2 * times.forward)
    assert slow.upload == times.upload
