"""Whether a processor has bf16 units, by what kernels write."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from cutlayer.config import read_config
from cutlayer.model.processor import has_bf16_units
from cutlayer.settings import slow_dtype


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 avx512f amx_bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd", False),
        ("model name\t: bf16 of a kind", None),
    ],
)
def test_what_the_kernel_says(line: str, expected: bool | None, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert has_bf16_units(cpuinfo) is expected


def test_where_there_is_no_such_file_torch_is_asked(tmp_path: Path) -> None:
    for said, expected in (({"avx512_bf16": True, "amx_bf16": False}, True), ({"bf16": False}, False), ({}, None)):
        with mock.patch.object(torch.cpu, "get_capabilities", return_value=said, create=True):
            assert has_bf16_units(tmp_path / "none") is expected


@pytest.mark.parametrize(
    ("units", "dtype", "said"), [(False, "bf16", True), (True, "bf16", False), (None, "bf16", False)]
)
def test_a_line_for_who_would_be_slower(units: bool | None, dtype: str, said: bool) -> None:
    with mock.patch("cutlayer.settings.has_bf16_units", return_value=units):
        line = slow_dtype(read_config(None, [f"model.dtype={dtype}"]))
        assert (line is not None) is said
        assert slow_dtype(read_config(None, [])) is None
