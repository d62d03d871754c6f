"""No more threads than a container may use."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from cutlayer.cli.threads import fit_threads


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("900000 100000", None), ("max 100000", None)]
)
def test_the_share_of_a_container(
    quota: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    with (
        mock.patch.object(torch, "get_num_threads", return_value=4),
        mock.patch.object(torch, "set_num_threads") as got,
    ):
        fit_threads(tmp_path / "cpu.max")
        fit_threads(tmp_path / "none")
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        fit_threads(tmp_path / "cpu.max")
    assert [call.args[0] for call in got.call_args_list] in ([expected], [4]) or not got.called
    assert got.called == (quota.split()[0] != "max")
    if expected is not None:
        got.assert_called_once_with(expected)
