"""Facts that a device tells of itself, with clocks and files made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cutlayer.device.probe import (
    SIZES,
    LinkRates,
    free_host_memory,
    free_memory,
    link_rates,
    median_seconds,
    probe,
    training_step,
)

CPU = torch.device("cpu")
LINK = LinkRates(2e6, 3e6, 0.01)
GIB = 2**30


class FakeClock:
    """Stands still but for what the steps take."""

    def __init__(self, durations: Iterator[float]) -> None:
        self.seconds, self._durations, self.steps = 100.0, durations, 0

    def __call__(self) -> float:
        return self.seconds

    def step(self) -> None:
        self.seconds += next(self._durations)
        self.steps += 1


# ------------------------------------------------------------------ speed


def test_the_median_of_what_fits_into_the_budget_without_the_first() -> None:
    clock = FakeClock(iter([9.0, 0.1, 0.02, 0.1, 0.02, 0.05, 7.0]))
    assert median_seconds(clock.step, clock, budget=0.28) == pytest.approx(0.05)
    assert clock.steps == 6


def test_a_slow_device_still_takes_three() -> None:
    clock = FakeClock(iter([9.0, 3.0, 1.0, 2.0]))
    assert median_seconds(clock.step, clock, budget=0.3) == pytest.approx(2.0)


def test_a_clock_that_is_too_coarse_is_no_division_by_zero() -> None:
    ticks = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert median_seconds(lambda: None, lambda: next(ticks), budget=0.3) == 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_are_counted_as_those_of_a_part(dtype: torch.dtype) -> None:
    step, flops = training_step(CPU, dtype)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == flops


def test_speed_is_operations_by_seconds() -> None:
    flops = training_step(CPU, torch.float32)[1]
    ticks = iter([0.0, 1.0, 3.0, 3.0, 4.0, 6.0, 9.0, 9.0])  # three steps, of 2, 1 and 3 seconds
    probed = probe(CPU, torch.float32, lambda: next(ticks))
    assert probed.flops_per_second == flops / 2.0


def test_a_gpu_gets_more_to_do() -> None:
    assert SIZES["cuda"] > SIZES["cpu"]


# ------------------------------------------------------------------ the link


@given(
    bits=st.tuples(st.floats(1e4, 1e9), st.floats(1e4, 1e9)),
    latency=st.floats(0, 1),
    sizes=st.lists(st.integers(1000, 10**7), min_size=1, max_size=9),
)
def test_a_link_is_found_again(bits: tuple[float, float], latency: float, sizes: list[int]) -> None:
    def transfers(rate: float) -> list[tuple[int, float]]:
        return [(size, 2 * latency + 8 * size / rate) for size in sizes]

    long_enough = all(8 * size / rate >= 2 * latency for size in sizes for rate in bits)
    found = link_rates(transfers(bits[0]), transfers(bits[1]), [2 * latency] * 3)
    assert found.latency_seconds == latency
    for rate, true in zip((found.up_bits_per_second, found.down_bits_per_second), bits, strict=True):
        assert rate == pytest.approx(true, rel=1e-6) if long_enough else rate <= true * (1 + 1e-6)


def test_one_slow_transfer_and_one_slow_answer_say_nothing() -> None:
    found = link_rates([(1000, 1.1), (1000, 9.0), (1000, 1.1)], [(1000, 0.6)] * 3, [0.1, 0.1, 5.0])
    assert found.up_bits_per_second == pytest.approx(8000)
    assert found.down_bits_per_second == pytest.approx(16000)
    assert found.latency_seconds == 0.05


def test_a_transfer_that_took_no_time_has_a_finite_rate() -> None:
    found = link_rates([(1000, 0.0)], [(1000, 0.01)], [0.5])
    assert found.up_bits_per_second == pytest.approx(8e12)
    assert found.down_bits_per_second == pytest.approx(1_600_000), "at most twice what it looked like"


# ------------------------------------------------------------------ memory


def files(root: Path, **contents: str) -> None:
    for name, text in contents.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def group(root: Path, path: str, limit: str, used: int, cached: int | None = None) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    if cached is not None:
        (folder / "memory.stat").write_text(f"anon 77\nfile 99\ninactive_file {cached}\nactive_file 5\n")


def member(root: Path, *lines: str) -> None:
    path = root / "proc/self/cgroup"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def test_without_groups_the_machines(tmp_path: Path) -> None:
    assert free_host_memory(8 * GIB, tmp_path) == 8 * GIB


def test_a_container_is_smaller_than_its_machine(tmp_path: Path) -> None:
    member(tmp_path, "0::/")
    group(tmp_path, "", str(2 * GIB), GIB // 2, cached=GIB // 4)
    assert free_host_memory(8 * GIB, tmp_path) == 2 * GIB - GIB // 2 + GIB // 4
    assert free_host_memory(GIB, tmp_path) == GIB, "the machine is fuller than the container"


def test_the_tightest_group_around_counts(tmp_path: Path) -> None:
    member(tmp_path, "0::/system.slice/device.service")
    group(tmp_path, "system.slice/device.service", "max", 100)
    assert free_host_memory(8 * GIB, tmp_path) == 8 * GIB
    group(tmp_path, "system.slice", str(3 * GIB), GIB)
    assert free_host_memory(8 * GIB, tmp_path) == 2 * GIB
    group(tmp_path, "system.slice/device.service", str(GIB), 100)
    assert free_host_memory(8 * GIB, tmp_path) == GIB - 100
    group(tmp_path, "another.slice", str(50), 1)
    assert free_host_memory(8 * GIB, tmp_path) == GIB - 100


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    member(tmp_path, "11:cpu,cpuacct:/docker/abc", "4:memory:/docker/abc", "1:name=systemd:/docker/abc")
    folder = tmp_path / "sys/fs/cgroup/memory"  # inside a container the path of the outside is not there
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (folder / "memory.usage_in_bytes").write_text("1000\n")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 10\n")
    assert free_host_memory(8 * GIB, tmp_path) == GIB - 1000 + 10
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert free_host_memory(8 * GIB, tmp_path) == 8 * GIB


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    member(tmp_path, "0::/")
    group(tmp_path, "", "1000", 2000)
    assert free_host_memory(GIB, tmp_path) == 1


def test_what_is_free_here() -> None:
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total
