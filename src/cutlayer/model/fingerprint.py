"""Whether two ends have the same model, told from a few kilobytes: for the hello of a device that has its own files.

It tells apart other architectures, vocabularies and checkpoints, and one checkpoint before and after training, merging
or rounding. It does not see a change inside a tensor that leaves its first and last bytes, and sees no values at all
where an end has not all of the files, as a device that fetched only its shards. Whoever must know compares what
`PieceServer.manifest` says of the tensors of a cut on both ends: that reads them all.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from cutlayer.errors import MalformedMessage, ModelError
from cutlayer.model.card import BY_FINGERPRINT
from cutlayer.model.source import TOKENIZER, ModelFiles, read_header

NOT_THE_MODEL = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of config.json that tell who saved the model, or for which the run has a value of its own."""
EDGE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Digests of a model, 16 hex digits each.

    Attributes:
      config: of what config.json says of the model.
      tokenizer: of the tokenizer's files.
      tensors: of the names of the tensors.
      values: of dtype, shape, first and last bytes of each tensor; empty where an end has not all of them.
    """

    config: str
    tokenizer: str
    tensors: str
    values: str

    @property
    def text(self) -> str:
        """The four digests with dots between them, as a message carries them."""
        return ".".join(getattr(self, field.name) for field in fields(self))

    @classmethod
    def read(cls, text: str) -> Fingerprint:
        """The fingerprint with this `text`.

        Raises:
          MalformedMessage: It is none.
        """
        if not re.fullmatch(r"(?:[0-9a-f]{16})?(?:\.(?:[0-9a-f]{16})?){3}", text):
            raise MalformedMessage(
                f"fingerprint: expected four digests of 16 hex digits with dots between them, got {text[:80]!r}. "
                "Does the other end speak this version?"
            )
        return cls(*text.split("."))

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name) or 'unknown'}" for field in fields(self))


def fingerprint(files: ModelFiles) -> Fingerprint:
    """The fingerprint of a model; downloads no weights that are not here.

    Raises:
      ModelError: The model has no safetensors files, or what is there is none.
    """
    config = {key: value for key, value in files.config.items() if key not in NOT_THE_MODEL}
    shards = files.shards()
    return Fingerprint(
        config=_digest(json.dumps(config, sort_keys=True).encode()),
        tokenizer=_tokenizer(files),
        tensors=_digest(json.dumps(sorted(shards)).encode()),
        values=_values(files, sorted(set(shards.values()))),
    )


def public_name(files: ModelFiles) -> str:
    """The name by which others find a model: of the hub or built in, else what its fingerprint says; never a path."""
    if files.folder is None or files.name.startswith("builtin:"):
        return files.name
    return f"{BY_FINGERPRINT}{fingerprint(files).text}"


def check_same(here: Fingerprint, server: Fingerprint, name: str) -> None:
    """Raises ModelError where a device's model is not the server's. What one of them does not know is no difference.

    Args:
      here: The device's.
      server: The server's.
      name: The device's name for its model.
    """
    pairs = {field.name: (getattr(here, field.name), getattr(server, field.name)) for field in fields(Fingerprint)}
    other = [what for what, (mine, its) in pairs.items() if mine and its and mine != its]
    if other:
        raise ModelError(
            f"model {name}: expected the server's ({server}), got another in {' and '.join(other)} ({here}). "
            "Name the model that the server has, or let the server send it."
        )


def _tokenizer(files: ModelFiles) -> str:
    whole = files.find(TOKENIZER[0])
    found = [whole] if whole else [path for name in TOKENIZER[1:] if (path := files.find(name))]
    return _digest(*(path.read_bytes() for path in found)) if found else ""


def _values(files: ModelFiles, shards: list[str]) -> str:
    edges: dict[str, bytes] = {}
    for shard in shards:
        path = files.at_hand(shard)
        if path is None:
            return ""
        edges |= _edges(path)
    return _digest(*(part for name in sorted(edges) for part in (name.encode(), edges[name])))


def _edges(path: Path) -> dict[str, bytes]:
    """Dtype, shape, and first and last bytes of each tensor in the file, by its name."""
    data, header = read_header(path)
    edges = {}
    with open(path, "rb") as file:
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            file.seek(data + first)
            start = file.read(min(EDGE_BYTES, last - first))
            file.seek(data + max(first, last - EDGE_BYTES))
            end = file.read(min(EDGE_BYTES, last - first))
            edges[name] = json.dumps([entry["dtype"], entry["shape"]]).encode() + start + end
    return edges


def _digest(*parts: bytes) -> str:
    """Digest of the parts and of where each ends."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
