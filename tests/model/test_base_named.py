"""How somebody without a run gets the base of its adapter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cutlayer.model import base_named
from cutlayer.model.base_named import base_code, base_sentence


def files(name: str, folder: str | None, gguf: str | None = None) -> Any:
    return SimpleNamespace(name=name, folder=folder, gguf=gguf)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (files("org/model", None), "base = Loader.from_pretrained('org/model')"),
        (files("my/model", "my/model"), "base = Loader.from_pretrained('BASE')"),
        (files("builtin:smollm2", "x", "y"), "base = pretrained(ModelFiles('builtin:smollm2'), Loader)"),
        (files("m.gguf", "x", "m.gguf"), "base = pretrained(ModelFiles('BASE'), Loader)"),
    ],
)
def test_the_line_that_makes_the_base(model: Any, code: str) -> None:
    assert base_code(model, "Loader", 0).splitlines()[-1] == code


def test_a_head_is_made_of_the_adapters_size() -> None:
    of_a_folder = base_code(files("m", "m"), "Loader", 3)
    assert of_a_folder == "base = Loader.from_pretrained('BASE', num_labels=3, ignore_mismatched_sizes=True)"
    assert base_code(files("builtin:minilm", "x"), "Loader", 3).endswith("Loader, num_labels=3)")


def test_it_is_said_what_to_put_for_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_named, "public_name", lambda _files: "fingerprint:12ab")
    assert base_sentence(files("org/model", None)) == ""
    assert "Put for BASE the folder" in base_sentence(files("m", "m"))
    assert "fingerprint:12ab" in base_sentence(files("m", "m"))
    assert "Put for BASE the GGUF file" in base_sentence(files("m.gguf", "m", "m.gguf"))
    assert "ModelFiles('builtin:smollm2')" in base_sentence(files("builtin:smollm2", "x", "y"))
