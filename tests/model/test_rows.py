"""Rows of a file are those of the tensor, however it lies there, and the file is not held in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import ggufs
from cutlayer.errors import ModelError
from cutlayer.model import rows
from cutlayer.model.llama_cpp import llama_cpp
from cutlayer.model.packed import Stored, unpacked
from cutlayer.model.quantised import Form
from cutlayer.model.rows import Rows
from cutlayer.model.source import ModelFiles, Weights

CPU = torch.device("cpu")


def weights_of(name: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return Weights(ModelFiles(str(name)), prefix="model", dtype=dtype, device=CPU)


def test_all_of_a_file_of_safetensors(tiny_model: Callable[[str, str], Path]) -> None:
    folder = tiny_model("llama", "causal-lm")
    weights, stored = weights_of(folder), load_file(folder / "model.safetensors")
    read = 0
    for name, tensor in stored.items():
        lazy = weights.rows(name)
        assert (lazy.shape, lazy.dtype, lazy.num_bytes) == (tensor.shape, tensor.dtype, tensor.nbytes)
        with mock.patch.object(rows, "AT_ONCE", 50):
            assert torch.equal(lazy.whole(torch.float64, CPU), tensor.double())
            assert len(list(lazy.chunks())) > 1 or tensor.numel() <= 50
        assert torch.equal(lazy[1:3], tensor[1:3])
        assert weights.bytes_read == read, "whoever asks for rows counts them"
        assert torch.equal(weights.read(name), tensor)
        read += tensor.nbytes
        assert weights.bytes_read == read


def test_tensors_of_no_axis_and_of_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"one": torch.tensor(7.5), "none": torch.zeros(0, 3)}, path)
    start, entries = rows_of_header(path)
    for name, expected in (("one", torch.tensor(7.5)), ("none", torch.zeros(0, 3))):
        first = start + entries[name]["data_offsets"][0]
        found = Rows(path, name, first, tuple(entries[name]["shape"]), torch.float32)
        assert torch.equal(found.whole(torch.float32, CPU), expected)


def rows_of_header(path: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    from cutlayer.model.source import read_header

    return read_header(path)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_packed_rows_in_the_order_of_transformers(kind: str, tmp_path: Path) -> None:
    """Queries and keys too, of which rows of one head lie among each other."""
    model = llama_cpp(ggufs.save_gguf(tmp_path / "model.gguf", kind=kind))
    weights = weights_of(model.path)
    reordered = 0
    for name in model.tensors:
        whole = unpacked(model.file.read(model.tensors[name]), model.stored(name), name)
        lazy = weights.rows(name)
        assert (lazy.shape, lazy.read_as) == (whole.shape, whole.dtype)
        reordered += bool(lazy.stored and lazy.stored.heads)
        for at_once in (1, 70, 2**20):
            with mock.patch.object(rows, "AT_ONCE", at_once):
                assert torch.equal(lazy.whole(torch.float32, CPU), whole.float()), (name, at_once)
        assert torch.equal(weights.read(name), whole)
        if whole.dim() == 2:
            form = Form("int8", (whole.shape[0], whole.shape[1]))
            for mine, its in zip(form.rounded(lazy), form.rounded(whole), strict=True):
                assert torch.equal(mine, its)
    assert reordered == 2 * ggufs.BLOCKS


@pytest.mark.parametrize("heads", [-1, 5])
def test_heads_that_the_rows_are_not_of(heads: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * 12 * 2))
    stored = Stored("F32", heads)
    found = Rows(tmp_path / "file", "q", 0, (12, 2), torch.float32, stored)
    with pytest.raises(ModelError, match=r"rows of .* heads"):
        found[0:1]
    with pytest.raises(ModelError, match=r"rows of .* heads"):
        unpacked(torch.zeros(12, 2), stored, "q")


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    found = Rows(tmp_path / "file", "w", 40, (5, 4), torch.float32)
    assert found[0:3].shape == (3, 4)
    with pytest.raises(ModelError, match=r"expected 32 bytes of w, got fewer"):
        found[3:5]


PEAK = """
import sys, torch
from pathlib import Path
from cutlayer.model.quantised import Form
from cutlayer.model.source import ModelFiles, Weights
from cutlayer.report.summary import peak_memory_bytes
name, dtype = sys.argv[2:]
weights = Weights(ModelFiles(sys.argv[1]), prefix="model", dtype=getattr(torch, dtype), device=torch.device("cpu"),
                  forms={name: Form("int8", (40000, 1024))} if dtype == "float16" else {})
torch.rand(2**20).mul_(2).amax()
before = peak_memory_bytes()
held = weights.held(name)
print(peak_memory_bytes() - before, held.numel() * held.element_size())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_converted_is_never_there_twice(
    dtype: str, tiny_model: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """82 MB of bf16, made fp32 or, for `float16` here, rounded to int8: the process grows by what it then holds."""
    config = (tiny_model("llama", "causal-lm") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    name = "model.embed_tokens.weight"
    save_file({name: torch.zeros(40000, 1024, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path, name, dtype], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, held = map(int, done.stdout.split())
    assert grown < held + 24 * 2**20
