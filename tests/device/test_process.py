"""A process takes what was foretold, and not much less: in numbers, and under a limit that the kernel keeps."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.device.process import MIB, START_BYTES, for_a_part, foretold_bytes, own_bytes, process_bytes

SAMPLES, TOKENS, BLOCKS, STEPS = 8, 128, 4, 4
SHAPE = {"n_embd": 768, "n_layer": BLOCKS, "n_head": 12, "n_positions": TOKENS}
"""GPT-2 small's, of fewer blocks. Of narrower ones the heap's holes, which differ from run to run, are too much."""


@given(st.integers(1, 2**42), st.floats(0, 1), st.integers(0, 2**40))
def test_what_a_part_may_take_fits(free: int, fixed: float, largest: int) -> None:
    """The part fits whatever share of it comes and goes, in tensors of whatever size."""
    part = for_a_part(free)
    assert part >= 1
    if part > 1:
        assert process_bytes(0, part, int(fixed * part), largest) <= free + 1
    assert for_a_part(free + MIB) >= part


def test_a_process_without_a_batch_has_no_holes() -> None:
    assert process_bytes(10 * MIB, 7 * MIB, 7 * MIB, MIB) == 17 * MIB + START_BYTES
    assert process_bytes(0, 8 * MIB, 7 * MIB, MIB) > 8 * MIB + START_BYTES


def test_this_process_takes_something() -> None:
    assert 10 * MIB < own_bytes() < 2**40


# ------------------------------------------------------------------ real processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bf16: what a process converts, it owns."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("wide")
    GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=1, eos_token_id=2)).bfloat16().save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are Linux's")
@pytest.mark.parametrize(("dtype", "cut"), [("fp32", 1), ("fp32", BLOCKS), ("int8", BLOCKS)])
def test_predicted_bounds_the_peak_and_is_near_it(dtype: str, cut: int, folder: Path) -> None:
    found = _in_a_process(folder, dtype, cut, share=0.0)
    predicted, peak = found["predicted"], found["peak"]
    assert peak <= predicted <= 1.15 * peak, f"{predicted / MIB:.0f} MiB predicted, {peak / MIB:.0f} measured"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are Linux's")
def test_a_process_lives_under_a_limit_of_what_was_foretold(folder: Path) -> None:
    """`RLIMIT_DATA` counts what a process has mapped for itself, and what its heap has asked for ahead: with all that
    was foretold it trains, with a third of it, it is refused memory."""
    assert _in_a_process(folder, "fp32", BLOCKS, share=1.0)["steps"] == STEPS
    with pytest.raises(AssertionError, match=r"allocate memory|MemoryError|bad_alloc"):
        _in_a_process(folder, "fp32", BLOCKS, share=0.33)


def _in_a_process(folder: Path, dtype: str, cut: int, share: float) -> dict[str, int]:
    command = [sys.executable, __file__, json.dumps([str(folder), dtype, cut, share])]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    found: dict[str, int] = json.loads(child.stdout.splitlines()[-1])
    return found


def _train(folder: str, dtype: str, cut: int, share: float) -> dict[str, int]:
    """Steps as a device makes them, in a process that has imported what a device imports.

    Args:
      folder: Of the model.
      dtype: Of its weights.
      cut: Blocks on the device.
      share: Of what was foretold beyond what the process has, how much it may have; 0 for no limit.
    """
    import torch

    import cutlayer.joining  # noqa: F401  what a device imports
    from cutlayer.device.shape import shape_by_name
    from cutlayer.model.base import Base
    from cutlayer.model.cost import CostModel
    from cutlayer.model.settings import ModelSettings
    from cutlayer.model.trainable import OptimizerSettings, Trainable
    from cutlayer.report.summary import peak_memory_bytes
    from cutlayer.transport.allocator import ON_A_DEVICE, PAD_BYTES, keep_freed_memory
    from cutlayer.types import DevicePlan

    torch.set_num_threads(1)
    keep_freed_memory(ON_A_DEVICE)
    own = own_bytes()
    settings, plan = ModelSettings(folder, "causal-lm", dtype=dtype), DevicePlan("pi", cut)
    costs = CostModel(settings).of(shape_by_name("split").flow)
    predicted = foretold_bytes(own, costs, plan, SAMPLES, TOKENS)
    if share:
        mapped = _mapped_bytes() + int(share * (predicted - own_bytes())) + PAD_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (mapped, mapped))
    base = Base(settings)
    adapter = base.initial_adapter(seed=0)
    trainable = Trainable({name: adapter[name] for name in base.device_names(cut)}, OptimizerSettings())
    ids_BT = torch.ones(SAMPLES, TOKENS, dtype=torch.long)
    for _ in range(STEPS):
        device = base.device_part(cut)
        device.use(trainable.parameters)
        h_BTD = device.forward({"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)})
        h_BTD.backward(torch.rand_like(h_BTD))
        trainable.step(1e-3)
    return {"predicted": predicted, "peak": peak_memory_bytes(), "steps": STEPS}


def _mapped_bytes() -> int:
    """Bytes that count against `RLIMIT_DATA`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmData:")[2].split()[0])


if __name__ == "__main__":
    print(json.dumps(_train(*json.loads(sys.argv[1]))))
