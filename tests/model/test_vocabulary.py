"""A tokenizer and a model that belong together or not: told before anything is written, at every door, in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from bases import open_base
from cutlayer.config import read_config
from cutlayer.errors import DataError, ModelError
from cutlayer.model.generate import generate
from cutlayer.model.source import ModelFiles
from cutlayer.model.vocabulary import check_ids, rows_of
from cutlayer.run.inputs import prepare, prepare_server
from cutlayer.settings import load_tokenizer
from cutlayer.testing.tiny import VOCABULARY, reviews, save_tiny_model, save_tiny_tokenizer, write_jsonl

ModelMaker = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer."""
    return save_tiny_tokenizer(save_tiny_model("bert", "classification", tmp_path / "model"))


def grown(folder: Path, **more: Any) -> Any:
    """The tokenizer with more tokens than the model has rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "words" in more:
        tokenizer.add_tokens(more["words"])
    else:
        tokenizer.add_special_tokens(more)
    tokenizer.save_pretrained(folder)
    return tokenizer


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_tokenizer(ModelFiles(str(folder)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("role", ["pad_token", "bos_token", "eos_token", "unk_token", "cls_token", "sep_token"])
def test_a_special_token_that_was_added(role: str, folder: Path) -> None:
    grown(folder, **{role: "[NEW]"})
    message = refusal(folder)
    assert f"ids below {VOCABULARY}" in message
    assert f"up to {VOCABULARY}, its {role.removesuffix('_token')} token '[NEW]'" in message


def test_words_that_were_added(folder: Path) -> None:
    grown(folder, words=["unheard", "unseen"])
    assert f"ids up to {VOCABULARY + 1}, a word of its vocabulary 'unseen'" in refusal(folder)


def test_fewer_rows_than_words(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 60}))
    assert rows_of(ModelFiles(str(folder))) == 60
    assert "ids below 60, the rows of the model's embeddings" in refusal(folder)


def test_as_many_rows_as_ids_or_more(folder: Path) -> None:
    assert len(load_tokenizer(ModelFiles(str(folder)))) == VOCABULARY
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": VOCABULARY + 9}))
    assert len(load_tokenizer(ModelFiles(str(folder)))) == VOCABULARY


def run_on(folder: Path, text: str) -> Any:
    data, (first, *rest) = folder.parent / "data", reviews(24, 1)
    write_jsonl(data / "train.jsonl", [first | {"text": text}, *rest])
    write_jsonl(data / "validation.jsonl", rest[:8])
    where = {"model.name": str(folder), "data.path": str(data), "data.max_length": 16, "out": str(folder.parent / "o")}
    return read_config(None, values=where)


def test_a_special_token_of_no_role_is_looked_for_in_the_texts(folder: Path) -> None:
    """gemma-3-1b's tokenizer has one for images, for which the model that reads only text has no row."""
    grown(folder, additional_special_tokens=["<image>"])
    prepare(run_on(folder, "n1 good"))
    config = run_on(folder, "n1 <image> good")
    with pytest.raises(DataError, match=f"training data: expected token ids below {VOCABULARY}, .*got {VOCABULARY}"):
        prepare(config)
    assert not (folder.parent / "o").exists()
    (folder.parent / "data" / "train.jsonl").rename(folder.parent / "data" / "validation.jsonl")
    with pytest.raises(DataError, match=f"validation data: expected token ids below {VOCABULARY}"):
        prepare_server(config)


FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.mark.parametrize(
    "family", ["bert", "gpt2", "roberta", "xlm-roberta", "deberta-v2", "gemma2", "llama", "modernbert", "qwen2"]
)
@pytest.mark.parametrize("left", [(), FILES[1:]], ids=["nothing", "its settings"])
def test_a_folder_without_a_tokenizer(family: str, left: tuple[str, ...], tmp_path: Path) -> None:
    """transformers invents one of the special tokens alone, where it finds none."""
    save_tiny_tokenizer(save_tiny_model(family, "classification", tmp_path))
    for name in FILES:
        if name not in left:
            (tmp_path / name).unlink(missing_ok=True)
    assert "tokenizer" in refusal(tmp_path)


def test_half_of_a_tokenizer(tmp_path: Path) -> None:
    save_tiny_model("gpt2", "causal-lm", tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    assert "expected a tokenizer (tokenizer.json), got " in refusal(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert len(load_tokenizer(ModelFiles(str(tmp_path)))) >= 2


def test_a_tokenizer_that_knows_no_word(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {"<unk>": 3}
    path.write_text(json.dumps(content))
    assert "a tokenizer that knows words, got one of" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "Nope"}}'])
def test_a_tokenizer_that_is_none(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "expected a tokenizer (tokenizer.json), got " in refusal(folder)


def test_token_types_have_rows_too(folder: Path) -> None:
    ids, types, files = np.array([1, 2, 3], np.int32), np.array([0, 2, 0], np.int32), ModelFiles(str(folder))
    with pytest.raises(DataError, match=r"data d: expected token types below 2, .* got 2"):
        check_ids(ids, types, files, "data d")
    check_ids(ids, types[:1], files, "data d")
    check_ids(ids[:0], None, files, "data d")


def test_a_prompt_of_tokens_without_rows(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    adapter = base.initial_adapter(0)
    with pytest.raises(DataError, match=f"expected token ids below {VOCABULARY}.* got {VOCABULARY}"):
        generate(base, adapter, [[5, VOCABULARY]], ends=[2], new_tokens=2)
