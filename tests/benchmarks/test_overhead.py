"""The overhead benchmark runs, and what it compares computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import overhead
from cutlayer.errors import ConfigError
from jobs import JOBS, random_batches


def test_split_and_plain_compute_the_same() -> None:
    plain, fused = overhead.measure(JOBS["tiny"], pairs=2, steps=3, device="cpu")
    assert (plain.against, fused.against) == ("peft", "peft fused")
    assert fused.same_losses, "every loss of every block, after as many optimizer steps"
    assert fused.cpu_ratio_quartiles[0] <= fused.cpu_ratio <= fused.cpu_ratio_quartiles[1]


def test_ratio_is_of_throughputs() -> None:
    """A split that takes twice as long has half the tokens per second. The first block of each warms up."""
    plain = [overhead.Block(wall, wall, 1.0) for wall in (9.0, 1.0, 2.0, 3.0)]
    ours = [overhead.Block(wall, wall, 1.0) for wall in (1.0, 2.0, 4.0, 6.0)]
    row = overhead._row(JOBS["tiny"], "peft", plain, ours, steps=2)
    assert (row.wall_ratio, row.cpu_ratio) == (0.5, 0.5)
    assert (row.plain_wall_ms, row.split_wall_ms) == (1000.0, 2000.0)
    assert row.split_tokens_per_second == JOBS["tiny"].num_samples * JOBS["tiny"].num_tokens / 2.0


def test_batches_are_padded_and_seeded() -> None:
    one, other = random_batches(JOBS["tiny"], 2), random_batches(JOBS["tiny"], 2)
    assert all(torch.equal(a.input_ids_BT, b.input_ids_BT) for a, b in zip(one, other, strict=True))
    batch = random_batches(JOBS["nano"], 1)[0]
    lengths_B = batch.attention_mask_BT.sum(1)
    assert lengths_B[0] == JOBS["nano"].num_tokens > lengths_B.min() >= JOBS["nano"].num_tokens // 2
    assert batch.weight == int((batch.labels[:, 1:] != -100).sum())


def test_it_prints_tables_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: Callable[[Any], None]
) -> None:
    in_this_process(overhead)
    path = tmp_path / "results" / "overhead.json"
    overhead.main(["--models", "tiny", "--swap-model", "tiny", "--pairs", "1", "--steps", "1", "--json", str(path)])
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert "tokens/s of split over plain PEFT" in shown
    assert "load average" in shown
    assert [row["against"] for row in written["rows"]["models"]] == ["peft", "peft fused"]
    assert written["rows"]["swap"].keys() == {"Part.use", "peft set_adapter"}
    assert written["settings"] == {"pairs": 1, "steps": 1, "device": "cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused() -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        overhead.main(["--device", "cuda"])
