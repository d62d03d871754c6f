import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import cutlayer
from cutlayer.report import summary

CHILD = """
from cutlayer.report.summary import peak_memory_bytes
before = peak_memory_bytes()
block = bytearray(600 * 2**20)
block[::4096] = bytes([1]) * len(block[::4096])
del block
print(before, peak_memory_bytes())
"""


def test_versions_name_what_decides_a_result() -> None:
    found = summary.versions()
    assert list(found) == ["cutlayer", "python", "torch", "transformers", "peft", "datasets", "safetensors"]
    assert found["cutlayer"] == cutlayer.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == version("torch")


def test_the_peak_sees_memory_that_is_already_given_back_but_not_the_parents() -> None:
    """The child starts while this process is larger than the child will ever be."""
    block = bytearray(2**30)
    block[::4096] = b"x" * len(block[::4096])
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = map(int, child.stdout.split())
    assert 8 * 2**20 < before < 2**30
    assert 500 * 2**20 < after - before < 610 * 2**20


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_without_proc_the_peak_comes_from_getrusage(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", platform)
    usage = type("Usage", (), {"ru_maxrss": 5})
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert summary.peak_memory_bytes() == 5 * unit


def test_cuda_is_left_out_where_it_was_not_used() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which another test may have used")
    assert summary.peak_cuda_bytes() is None
