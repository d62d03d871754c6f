"""Demands of a config.json, refused before anything is made of it."""

from __future__ import annotations

import ast
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

import cutlayer
from bases import open_base
from cutlayer.errors import MalformedMessage, ModelError
from cutlayer.model.asked import MOST_BYTES, check_config, check_room
from cutlayer.model.pieces import CONFIG_BYTES, Piece, PieceStore
from cutlayer.model.source import ModelFiles

ModelMaker = Callable[[str, str], Path]


@pytest.fixture
def copied(tiny_model: ModelMaker, tmp_path: Path) -> Callable[..., Path]:
    def copy(family: str, **changes: Any) -> Path:
        folder = Path(shutil.copytree(tiny_model(family, "classification"), tmp_path / "model"))
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return copy


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        open_base(folder, "classification")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(folder))
    return str(error.value)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"num_hidden_layers": 10**6}),
        ("llama", {"num_hidden_layers": 10**9}),
        ("llama", {"hidden_size": 10**9}),
        ("llama", {"hidden_size": 1e9}),
        ("llama", {"num_attention_heads": 10**8}),
        ("llama", {"head_dim": 10**9}),
        ("llama", {"vocab_size": 10**12}),
        ("llama", {"layer_types": ["full_attention"] * 10**5}),
        ("gpt2", {"n_layer": 10**6}),
        ("gpt2", {"n_embd": 10**9}),
        ("gpt2", {"n_positions": 10**11}),
        ("gpt2", {"n_inner": 10**9}),
        ("distilbert", {"n_layers": 10**6}),
        ("distilbert", {"dim": 10**9}),
        ("distilbert", {"hidden_dim": 10**9}),
        ("bert", {"max_position_embeddings": 10**12}),
        ("bert", {"text_config": {"num_hidden_layers": 10**6, "model_type": "bert"}}),
        ("opt", {"ffn_dim": 10**10}),
    ],
    ids=str,
)
def test_sizes_beyond_those_of_any_model(family: str, change: dict[str, Any], copied: Callable[..., Path]) -> None:
    folder = copied(family, **change)
    tracemalloc.start()
    message = refusal(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "expected config.json with" in message
    assert peak < 16 * 2**20, "refused before memory is taken"


def test_a_pieces_folder_is_asked_no_less(copied: Callable[..., Path], tmp_path: Path) -> None:
    """A config.json that a server sent is read by the same door, with no weights beside it."""
    (tmp_path / "sent").mkdir()
    shutil.copy(copied("llama", num_hidden_layers=10**6) / "config.json", tmp_path / "sent")
    with pytest.raises(ModelError, match="num_hidden_layers of at most 1024"):
        _ = ModelFiles(str(tmp_path / "sent")).model_type


def test_tables_that_no_file_holds() -> None:
    """Positions that are a buffer: within the bound of each number, and together not."""
    check_room("m", MOST_BYTES)
    with pytest.raises(ModelError, match=f"at most {MOST_BYTES} bytes"):
        check_room("m", MOST_BYTES + 1)


@pytest.mark.slow
def test_every_kind_of_config_that_transformers_has_may_be() -> None:
    """Their defaults are the sizes of published models."""
    made = 0
    for kind in CONFIG_MAPPING:
        try:
            content = CONFIG_MAPPING[kind]().to_dict()
        except Exception:  # some are only made with arguments
            continue
        check_config(kind, content)
        made += 1
    assert made > 200


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "someone/flash-attn"},
        {"_attn_implementation": "someone/flash-attn@v1:run"},
        {"_attn_implementation_internal": "a/b"},
        {"attn_implementation": {"": "sdpa", "vision": "a/b"}},
        {"text_config": {"attn_implementation": "a/b"}},
        {"experts_implementation": "a/b"},
    ],
    ids=str,
)
def test_a_program_from_elsewhere(change: dict[str, Any], copied: Callable[..., Path]) -> None:
    assert "a program from elsewhere" in refusal(copied("llama", **change))


def test_an_implementation_of_transformers_may_be_named(copied: Callable[..., Path]) -> None:
    assert open_base(copied("llama", attn_implementation="eager"), "classification").num_blocks == 3


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {}},
        {"compression_config": {"format": "int-quantized"}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
    ],
    ids=str,
)
def test_quantised_weights_are_named_as_such(change: dict[str, Any], copied: Callable[..., Path]) -> None:
    folder = copied("llama", **change)
    assert "got quantised ones" in refusal(folder)
    with pytest.raises(ModelError, match="quantised"):
        _ = ModelFiles(str(folder)).config


def test_no_quantisation_may_be_said(copied: Callable[..., Path]) -> None:
    open_base(copied("llama", quantization_config=None), "classification")


def test_a_device_takes_no_longer_config(tmp_path: Path) -> None:
    with pytest.raises(MalformedMessage, match=f"of 1 to {CONFIG_BYTES} bytes"):
        PieceStore(tmp_path, 10**12).missing([Piece("config.json", CONFIG_BYTES + 1, "0" * 64)])


def test_nothing_of_transformers_is_made_without_saying_that_no_code_comes_with_it() -> None:
    """Where it is left out, transformers may ask a person on the terminal, or do as an environment says."""
    asks = ("AutoConfig", "AutoTokenizer", "GenerationConfig", "maker", "model_class")
    calls = 0
    for file in Path(cutlayer.__file__).parent.rglob("*.py"):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "from_pretrained" in text or "from_config" in text else ():
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("from_pretrained", "from_config"):
                continue
            owner = node.func.value.func if isinstance(node.func.value, ast.Call) else node.func.value
            if not (isinstance(owner, ast.Name) and owner.id in asks):
                continue  # PEFT's, and a model that is made of tensors
            said = {one.arg: one.value for one in node.keywords}.get("trust_remote_code")
            assert isinstance(said, ast.Constant), f"{file.name}:{node.lineno}"
            assert said.value is False, f"{file.name}:{node.lineno}"
            calls += 1
    assert calls >= 7
