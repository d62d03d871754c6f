"""Where a model may be: what only this machine can have is looked for, and a hub's name passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.errors import ModelError
from cutlayer.model.place import MINILM, SMOLLM2, check_place


def test_what_may_be_there_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"")
    for name in (MINILM, SMOLLM2, str(tmp_path), str(tmp_path / "model.gguf"), "org/model"):
        check_place(name)
    check_place("org/model", "main")


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("./none", None, "which is none of them"),
        ("none.gguf", None, "which is none of them"),
        ("~/none", None, "which is none of them"),
        ("bert", None, "which is none of them"),
        (MINILM, "main", "expected none for builtin:minilm"),
        ("FOLDER", None, "expected a config.json"),
    ],
)
def test_what_cannot_be_is_told(name: str, revision: str | None, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=expected):
        check_place(name.replace("FOLDER", str(tmp_path)), revision)
