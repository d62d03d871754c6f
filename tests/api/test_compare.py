"""A comparison by a function; what `cutlayer compare` shares with it is tested there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cutlayer import ConfigError, compare


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ((), {}, "expected at least one method, got none"),
        (("fedlora",), {"seeds": 0}, "expected at least 1 as seeds, got 0"),
        (("fedlora",), {"jobs": 0}, "expected at least 1 as jobs, got 0"),
        (("fedlora",), {"method": "memsfl"}, "got a section method"),
        (("no-such-method",), {}, "no-such-method"),
        (("fedlora",), {"metric": "colour"}, "colour"),
    ],
)
def test_what_cannot_be_leaves_no_folder(
    methods: tuple[str, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(*methods, out=tmp_path / "compared", **options)
    assert not (tmp_path / "compared").exists()


@pytest.mark.slow
def test_each_round_of_each_run_is_told_and_what_is_done_is_kept(inputs: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    sections: dict[str, Any] = {
        "model": inputs / "model",
        "data": {"path": inputs / "data", "max_length": 16},
        "train": {"rounds": 1, "local_steps": 1, "batch_size": 4},
        "out": tmp_path / "compared",
    }

    def hear(run: str, row: dict[str, Any]) -> None:
        told.append((run, row["round"]))

    first = compare("fedlora", seeds=2, on_round=hear, **sections)
    assert sorted(told) == [("fedlora-seed0", 0), ("fedlora-seed1", 0)]
    again = compare("fedlora", seeds=2, on_round=hear, **sections)
    assert len(told) == 2, "nothing runs twice"
    assert [figures.label for figures in again.methods] == [figures.label for figures in first.methods] == ["fedlora"]
