"""Texts that are read back: all of them where nothing has been computed, chance where nothing is left of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import read_back
from bases import open_base
from cutlayer.testing.tiny import random_batch, save_tiny_model


def test_the_nearest_row_is_the_token() -> None:
    generator = torch.Generator().manual_seed(0)
    table_VD = torch.randn(50, 16, generator=generator)
    ids_N = torch.randint(0, 50, (200,), generator=generator)
    assert read_back.named(3 * table_VD[ids_N] + 0.01, table_VD, ids_N) == 1
    assert read_back.named(torch.randn(200, 16, generator=generator), table_VD, ids_N) < 0.2


def test_a_line_for_each_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = open_base(save_tiny_model("bert", "classification", tmp_path), "classification")
    batch = random_batch("classification")
    reads = read_back.read_back(base, batch, [0], [1, 2])
    assert [read.cut for read in reads] == [1, 2]
    assert all(read.tokens == int(batch.attention_mask_BT.sum()) for read in reads)
    assert all(0 <= share <= 1 for read in reads for share in read.named.values())
    read_back.publish([read_back.as_table(reads)], tmp_path / "a.json", {}, {"reads": []})
    assert "packed as int8" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == {"reads": []}
