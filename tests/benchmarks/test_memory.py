"""The memory benchmark runs, its contender is honest, and its bound is what the shapes say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import memory
from jobs import JOBS, Job

TINY = JOBS["tiny"]


def test_models_of_one_base_are_not_separate() -> None:
    one, other = memory.OwnModel(TINY, 1, "cpu"), memory.OwnModel(TINY, 2, "cpu")
    memory._check_separate([one, other])
    other.part = one.base.server_part(2)
    with pytest.raises(AssertionError, match="its own weights"):
        memory._check_separate([one, other])


def test_bound_by_hand() -> None:
    """c_attn of width 16 has A of 8 x 16 and B of 48 x 8; of three blocks, cuts 1, 2, 3 leave 2, 1, 0 to the server."""
    adapter = 4 * (8 * 16 + 48 * 8) * (2 + 1 + 0) / 3
    queued = 2 * 8 * (16 * 4 + 4 + 1)  # 2 samples of 8 tokens: activations, label, mask
    assert memory.bound_per_device(TINY) == 3 * adapter + queued


def test_moments_are_those_that_the_optimizer_goes_on_from() -> None:
    model = memory.OwnModel(TINY, 1, "cpu")
    before = model._trainable.moments()
    model.learn(model.loss(memory.made_up(TINY, "device", model.base)))
    after = model._trainable.moments()
    assert before.keys() == after.keys()
    assert all(after[name] == 2 for name in after if name.endswith("#step"))


def test_it_prints_tables_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: Callable[[Any], None],
) -> None:
    in_this_process(memory)
    monkeypatch.setattr(memory, "floor", lambda: 2**20)
    path = tmp_path / "memory.json"
    small = ["--model", "tiny", "--whole-model", "tiny", "--whole-steps", "2"]
    memory.main([*small, "--devices", "3", "4", "--blocks", "1", "3", "--json", str(path)])
    shown, rows = capsys.readouterr().out, json.loads(path.read_text())["rows"]
    assert "MiB per added device, from 3 to 4 devices" in shown
    assert [row["what"] for row in rows["servers"]] == [
        "floor: imports only",
        "plain PEFT, whole model",
        "memsfl, 3 devices",
        "memsfl, 4 devices",
        "SFL-V1, 3 devices",
        "SFL-V1 one by one, 3 devices",
    ]
    assert all(row["net_bytes"] == row["peak_bytes"] - 2**20 for row in rows["servers"])
    assert [row["blocks"] for row in rows["devices"]] == [1, 3]
    assert rows["bound_per_added_device"] == memory.bound_per_device(TINY)
    assert [row["what"] for row in rows["whole"]] == ["plain PEFT", "split"]
    assert "tiny: whole run of 2 steps over plain PEFT's" in shown


def test_whole_runs_learn_and_are_judged_alike() -> None:
    """By the same rows, before and after as many steps. An adapter that has learned nothing is the base model."""
    plain, split = (run(TINY, 3, "cpu") for run in (memory.whole_plain, memory.whole_split))
    assert split.losses[0] == pytest.approx(plain.losses[0], rel=1e-6)
    assert split.losses[1] != split.losses[0]
    assert plain.losses[1] != plain.losses[0]


def test_ratios_are_those_of_the_run_over_plain_peft(capsys: pytest.CaptureFixture[str]) -> None:
    plain = memory.WholeRun("plain PEFT", 2**30, 100.0, (2.0, 1.0))
    split = memory.WholeRun("split", 2**30 + 2**28, 104.0, (2.0, 1.0))
    Console(width=200).print(memory.whole_table(split, plain, TINY, 24))
    line = next(line for line in capsys.readouterr().out.splitlines() if "split" in line)
    assert "1.25" in line
    assert "1.04" in line


def test_the_floor_is_a_python_with_torch_in_it() -> None:
    assert 100 * 2**20 < memory.floor() < 2 * 2**30


def test_processes_in_few_bits_are_held_against_fp32_with_the_same_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measured(_: Any, job: Job, device: str) -> memory.ProcessRow:
        assert device == "cpu"
        net = (job.settings.dtype == "fp32") * 300 + 100 * job.num_samples - 50 * job.settings.checkpoint_device
        return memory.ProcessRow(job.num_samples, job.dtype, job.recomputed, (400 + net) * 2**20, 400 * 2**20, 2**30)

    monkeypatch.setattr(memory, "in_fresh_process", measured)
    path = tmp_path / "memory.json"
    memory.main(["--only-few-bits", "--whole-model", "tiny", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]["processes"]
    assert [(row["num_samples"], row["dtype"], row["recomputed"]) for row in rows] == [
        *((2, "fp32", False), (2, "int8", False), (2, "int8", True)),
        *((1, "fp32", False), (1, "int8", False), (1, "int8", True)),
    ]
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if " x 8 " in line]
    assert [(line[-6], line[-4], line[-1]) for line in shown] == [
        # 900, 600 and 550 of 900; 1,024 over each; 500, 200 and 150 of 500
        *(("1.00", "1.14", "1.00"), ("0.67", "1.71", "0.40"), ("0.61", "1.86", "0.30")),
        *(("1.00", "1.28", "1.00"), ("0.62", "2.05", "0.25"), ("0.56", "2.28", "0.12")),
    ]
