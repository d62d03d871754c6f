"""Two copies of a model are told from two models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from bases import settings_for
from cutlayer.errors import MalformedMessage, ModelError
from cutlayer.model.fingerprint import Fingerprint, check_same, fingerprint
from cutlayer.model.pieces import PieceServer, PieceStore
from cutlayer.model.place import MINILM
from cutlayer.model.source import ModelFiles
from cutlayer.testing.tiny import save_tiny_model, save_tiny_tokenizer

ONE = Fingerprint("c", "t", "n", "v")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(save_tiny_model("llama", "causal-lm", tmp_path_factory.mktemp("model")))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def of(folder: Path) -> Fingerprint:
    return fingerprint(ModelFiles(str(folder)))


def differing(one: Fingerprint, other: Fingerprint) -> set[str]:
    return {name for name in Fingerprint.__slots__ if getattr(one, name) != getattr(other, name)}


def in_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=3))

    return change


def in_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return rewrite


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


def in_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_tiny_model("llama", "causal-lm", folder, shard="20KB")


def another_word(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("good", "fine"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda _: None, set()),
        (in_config(transformers_version="4.0", _name_or_path="elsewhere", dtype="float16"), set()),
        (in_shards, set()),
        (lambda folder: (folder / "notes.txt").touch(), set()),
        (in_config(rope_theta=5.0), {"config"}),
        (in_tensors(lambda tensors: tensors[NORM][0].add_(1)), {"values"}),
        (in_tensors(lambda tensors: tensors[NORM][-1].add_(1)), {"values"}),
        (in_tensors(lambda tensors: tensors[UP][-1, -1].add_(1e-3)), {"values"}),
        (in_tensors(lambda tensors: tensors.update({UP: tensors[UP].bfloat16()})), {"values"}),
        (in_tensors(lambda tensors: tensors.update({UP: tensors[UP].T.contiguous()})), {"values"}),
        (in_tensors(lambda tensors: tensors.update({"more": torch.zeros(1)})), {"tensors", "values"}),
        (another_word, {"tokenizer"}),
    ],
)
def test_what_makes_another_model(change: Callable[[Path], Any], what: set[str], original: Path, copy: Path) -> None:
    change(copy)
    assert differing(of(original), of(copy)) == what


def test_what_it_does_not_see(original: Path, copy: Path) -> None:
    in_tensors(lambda tensors: tensors[UP][8].add_(1))(copy)
    assert of(original) == of(copy), "the middle of a tensor"
    one, other = (PieceServer(settings_for(folder, "causal-lm")).manifest(2) for folder in (original, copy))
    changed = [mine.name for mine, its in zip(one, other, strict=True) if mine != its]
    assert changed == ["block-1.safetensors"], "the manifests of the pieces do"


def test_a_tokenizer_without_its_one_file(original: Path, copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").write_text("a\nb\n")
    before = of(copy)
    assert differing(of(original), before) == {"tokenizer"}
    (copy / "vocab.txt").write_text("b\na\n")
    assert differing(before, of(copy)) == {"tokenizer"}


def test_where_not_all_is_here_the_values_are_unknown(original: Path, tmp_path: Path) -> None:
    server, store = PieceServer(settings_for(original, "causal-lm")), PieceStore(tmp_path, 2**30)
    for piece, _ in store.missing(server.manifest(1)):
        store.append(piece, 0, server.read(piece.name, 0, piece.length))
    part = of(store.folder)
    assert part == replace(of(original), values="")
    check_same(part, of(original), "part")


def test_from_the_hub_no_shard_is_fetched_for_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_shards(copy)
    here, fetched = of(copy), []

    def download(_: str, filename: str, **__: object) -> str:
        fetched.append(filename)
        if not (copy / filename).exists():
            said: Any = SimpleNamespace(status_code=404, headers={}, request=None)
            raise huggingface_hub.errors.RemoteEntryNotFoundError("none", response=said)
        return str(copy / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert fingerprint(ModelFiles("org/model")) == replace(here, values="")
    assert not any(name.startswith("model-") for name in fetched)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, filename, **__: str(copy / filename))
    assert fingerprint(ModelFiles("org/model")) == here


def test_the_error_names_both() -> None:
    other = replace(ONE, tokenizer="u", values="w")
    with pytest.raises(ModelError) as raised:
        check_same(other, ONE, "my/model")
    assert str(raised.value) == (
        "model my/model: expected the server's (config c, tokenizer t, tensors n, values v), got another in tokenizer "
        "and values (config c, tokenizer u, tensors n, values w). Name the model that the server has, or let the "
        "server send it."
    )


@pytest.mark.parametrize("what", Fingerprint.__slots__)
def test_every_difference_counts_and_what_is_unknown_does_not(what: str) -> None:
    with pytest.raises(ModelError, match=f"got another in {what} "):
        check_same(replace(ONE, **{what: "x"}), ONE, "m")
    check_same(replace(ONE, **{what: ""}), ONE, "m")
    check_same(ONE, replace(ONE, **{what: ""}), "m")


def test_the_real_model() -> None:
    found = fingerprint(ModelFiles(MINILM))
    assert all(len(getattr(found, what)) == 16 for what in Fingerprint.__slots__)


def test_it_crosses_the_network_as_text(original: Path) -> None:
    for one in (of(original), replace(of(original), values="", tokenizer="")):
        assert Fingerprint.read(one.text) == one


@pytest.mark.parametrize("text", ["", "a.b.c.d", ".".join(["0" * 16] * 3), ".".join(["0" * 16] * 4) + "\n", "0" * 64])
def test_text_that_is_no_fingerprint(text: str) -> None:
    with pytest.raises(MalformedMessage, match="expected four digests"):
        Fingerprint.read(text)
