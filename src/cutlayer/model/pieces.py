"""A model in pieces: what the server sends to a device that has no files of it, and how the device keeps them.

The pieces are the files of a model folder, so `ModelFiles` and `Base` read what arrived as they read any model:

    config.json, tokenizer.json, ...    as they are
    model.safetensors.index.json        which tensor is in which of the next
    embeddings.safetensors              what precedes block 0
    block-<i>.safetensors               block i
    head.safetensors                    what follows the last block: only for a device that holds the whole model,
                                        which may begin by itself from what the checkpoint has there

The server stores nothing twice: a safetensors file is a header and then the tensors' bytes, so a piece is a new header
and ranges of the files that are there. Of a GGUF file the weights stay packed as they are in it, under the names that
they have in transformers, with a note in the header on how to read them (`model/packed.py`). Weights that the run holds
in a form (`model/quantised.py`) travel in it, whatever file they come from; the server makes them when it is asked.
On a device a piece is either whole, with the digest that the server named, or not there. What the other end says is
checked before it is used: names are never paths, lengths are bounded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cutlayer.errors import MalformedMessage, ModelError
from cutlayer.files import sha256, sync_folder
from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.cut import check_cut
from cutlayer.model.packed import written_note
from cutlayer.model.quantised import SCALE, Form
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import INDEX, TOKENIZER, read_header

EMBEDDINGS, HEAD = "embeddings.safetensors", "head.safetensors"
BLOCK = re.compile(r"block-(0|[1-9][0-9]{0,3})\.safetensors")
TENSORS = re.compile(rf"(?:embeddings|head)\.safetensors|{BLOCK.pattern}")
SMALL_BYTES = 128 * 2**20
"""The most that a piece may have that holds no tensors."""
CONFIG_BYTES = 4 * 2**20
"""The most that config.json may have: it is read whole, and what it says is bounded (`model/asked.py`)."""
CHUNK_BYTES = 2**20
SPELLED = {torch.int8: "I8", torch.uint8: "U8"}
MOST_PIECES = 1_100
"""Pieces that a manifest or a device has at most: no model that is read has as many blocks (`model/asked.py`)."""
WHOSE = "Is it a cutlayer server?"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece as the server announces it.

    Attributes:
      name: the file's name.
      length: its bytes.
      sha256: their digest, in hex.
    """

    name: str
    length: int
    sha256: str


def manifest_bytes(manifest: Sequence[Piece]) -> bytes:
    """A manifest as it crosses the network: JSON."""
    return json.dumps([asdict(piece) for piece in manifest]).encode()


def read_manifest(data: bytes) -> tuple[Piece, ...]:
    """The manifest that `manifest_bytes` wrote; its pieces are checked where they are used, by `PieceStore`.

    Raises:
      MalformedMessage: It is no list of pieces.
    """
    try:
        manifest = tuple(Piece(**row) for row in json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"manifest: expected a JSON list of pieces, got {error}. {WHOSE}") from error
    for piece in manifest:
        if [type(getattr(piece, field.name)) for field in fields(Piece)] != [str, int, str]:
            raise MalformedMessage(f"manifest: expected names, lengths and digests, got {str(piece)[:200]}. {WHOSE}")
    return manifest


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes of a file that is there."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Numbers or scales of a weight, which are made when they are asked for."""

    name: str
    length: int


_Stretch = bytes | _Range | _Rounded
"""A stretch of a piece."""


class PieceServer:
    """Serves the pieces of a model.

    Args:
      settings: The model; its weights are not loaded.

    Raises:
      ModelError: The model's files or architecture do not serve.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._base = Base(settings, device="meta")
        self._digests: dict[str, str] = {}
        self._last: tuple[str, list[bytes]] = "", []

    def manifest(self, cut: int, *, top: int | None = None) -> tuple[Piece, ...]:
        """The pieces that a device with this cut needs. A digest is computed once, by reading its piece to the end.

        Args:
          cut: Blocks on the device.
          top: The first block of the tail that it holds as well, with what follows the last; None for none.
        """
        blocks = self._base.num_blocks
        check_cut(cut, blocks)
        tail = [] if top is None else [*range(max(cut, top), blocks)]
        tensors = [EMBEDDINGS, *(_block(index) for index in (*range(cut), *tail)), *([] if top is None else [HEAD])]
        names = [name for name in self._contents if name not in self._tensors or name in tensors]
        return tuple(Piece(name, self._length(name), self._digest(name)) for name in names)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """These bytes of a piece.

        Raises:
          MalformedMessage: There is no such piece, or it has no such bytes.
        """
        if name not in self._contents or offset < 0 or length < 0 or offset + length > self._length(name):
            raise MalformedMessage(
                f"pieces of {self._base.settings.name}: expected bytes of one of {len(self._contents)} pieces, got "
                f"{length} bytes from {offset} of {name[:80]!r}. Ask for what the manifest names."
            )
        found = []
        for part in self._contents[name]:
            size = _size(part)
            first, end = min(offset, size), min(offset + length, size)
            if first < end:
                made = self._rounded(part.name) if isinstance(part, _Rounded) else part
                found.append(_bytes_of(made, first, end - first))
                length -= end - first
            offset -= first
        return b"".join(found)

    def _length(self, name: str) -> int:
        return sum(map(_size, self._contents[name]))

    def _rounded(self, name: str) -> bytes:
        """The bytes of a weight's numbers or scales. The last weight is kept: pieces are read from end to end."""
        weight = name.removesuffix(SCALE)
        last = self._last
        if last[0] != weight:
            pair = (tensor.contiguous().view(torch.uint8).flatten() for tensor in self._base.weights.rounded(weight))
            last = self._last = weight, [tensor.numpy().tobytes() for tensor in pair]
        return last[1][name != weight]

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            digest, length = hashlib.sha256(), self._length(name)
            for offset in range(0, length, CHUNK_BYTES):
                digest.update(self.read(name, offset, min(CHUNK_BYTES, length - offset)))
            self._digests[name] = digest.hexdigest()
        return self._digests[name]

    @cached_property
    def _contents(self) -> dict[str, list[_Stretch]]:
        """The stretches of which each piece is made, in the order in which pieces are sent."""
        files = self._base.files
        found = {name: path for name in ("config.json", *TOKENIZER) if (path := files.find(name))}
        contents: dict[str, list[_Stretch]] = {
            name: [_Range(path, 0, size)] for name, path in found.items() if (size := path.stat().st_size)
        }
        index = {known: piece for piece, places in self._tensors.items() for _, known in places}
        index |= {name: piece for piece, held in self._in_form.items() for one in held for name in (one, one + SCALE)}
        contents[INDEX] = [json.dumps({"weight_map": index}, sort_keys=True).encode()]
        headers: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for piece, places in self._tensors.items():
            for filename, _ in places:
                if filename not in headers:
                    path = files.find(filename)
                    if path is None:
                        raise ModelError(
                            f"model {files.name}: expected the shard {filename}, got none. Fetch it again."
                        )
                    headers[filename] = (path, *read_header(path))
            plain = [(known, *headers[filename]) for filename, known in places]
            contents[piece] = _assembled(plain, {name: self._base.forms[name] for name in self._in_form.get(piece, [])})
        return contents

    @cached_property
    def _in_form(self) -> dict[str, list[str]]:
        """The weights that are sent in their form, by piece."""
        held = {piece: [name for name, _ in places if name in self._base.forms] for piece, places in self._all.items()}
        return {piece: names for piece, names in held.items() if names}

    @cached_property
    def _tensors(self) -> dict[str, list[tuple[str, str]]]:
        """The places of the tensors that are sent as they are, by piece: the file, and the tensor's name in it."""
        return {
            piece: [place for name, place in places if name not in self._base.forms]
            for piece, places in self._all.items()
        }

    @cached_property
    def _all(self) -> dict[str, list[tuple[str, tuple[str, str]]]]:
        """The tensors' names and the place of each, by piece: the file, and the tensor's name in it."""
        base = self._base
        before = {name for name, _ in base.device_part(0).model.named_parameters()}
        pieces: dict[str, list[tuple[str, tuple[str, str]]]] = {
            name: [] for name in (EMBEDDINGS, *map(_block, range(base.num_blocks)), HEAD)
        }
        for name in base.parameter_names:
            place, block = base.weights.place(name), base.block_of(PREFIX + name)
            if place is None:
                continue  # a head or a pooler that the checkpoint has not
            pieces[EMBEDDINGS if name in before else HEAD if block is None else _block(block)].append((name, place))
        return {piece: places for piece, places in pieces.items() if places}


def is_due(name: str, cut: int, top: int | None) -> bool:
    """Whether a piece belongs to the part of a device: all that is no tensors does.

    Args:
      name: Of the piece.
      cut: Blocks on the device.
      top: The first block of the tail that it holds as well, with what follows the last; None for none.
    """
    found = BLOCK.fullmatch(name)
    if found is not None:
        return int(found[1]) < cut or (top is not None and int(found[1]) >= top)
    return name != HEAD or top is not None


def check_due(manifest: Sequence[Piece], cut: int, top: int | None) -> None:
    """Raises MalformedMessage for a manifest of more than what a device with this cut has asked for."""
    more = next((piece.name for piece in manifest if not is_due(piece.name, cut, top)), None)
    if more is not None or len(manifest) > MOST_PIECES:
        raise MalformedMessage(
            f"manifest: expected at most {MOST_PIECES} pieces, of the part with cut {cut}, got "
            f"{len(manifest) if more is None else more}. {WHOSE}"
        )


def _block(index: int) -> str:
    return f"block-{index}.safetensors"


def _assembled(tensors: Sequence[tuple[str, Path, int, dict[str, Any]]], forms: Mapping[str, Form]) -> list[_Stretch]:
    """A safetensors file.

    Args:
      tensors: Those that are sent as they are: name, the file that holds it, where its data begins, and its header.
      forms: Of the weights that are made.
    """
    found: list[tuple[str, dict[str, Any], _Stretch]] = []
    packed = {name: entries[name]["stored"] for name, _, _, entries in tensors if "stored" in entries[name]}
    for name, path, data, entries in tensors:
        first, last = entries[name]["data_offsets"]
        found.append((name, entries[name], _Range(path, data + first, last - first)))
    for name, form in forms.items():
        (shape, dtype), scales = form.stored, form.scales
        for one, entry, length in (
            (name, {"dtype": SPELLED[dtype], "shape": list(shape)}, form.num_bytes - 4 * scales[0]),
            (name + SCALE, {"dtype": "F32", "shape": list(scales)}, 4 * scales[0]),
        ):
            found.append((one, entry | {"data_offsets": [0, length]}, _Rounded(one, length)))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **written_note(packed)}}
    end = 0
    found.sort(key=lambda one: (-_item_bytes(one[1]), one[0]))
    for name, entry, stretch in found:
        places = [end, end + _size(stretch)]
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": places}
        end += _size(stretch)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors lie aligned, the widest first
    return [struct.pack("<Q", len(text)) + text, *(stretch for _, _, stretch in found)]


def _size(part: _Stretch) -> int:
    return len(part) if isinstance(part, bytes) else part.length


def _item_bytes(entry: dict[str, Any]) -> int:
    first, last = entry["data_offsets"]
    count = 1
    for size in entry["shape"]:
        count *= size
    return (last - first) // count if count else 0


def _bytes_of(part: bytes | _Range, offset: int, length: int) -> bytes:
    if isinstance(part, bytes):
        return part[offset : offset + length]
    with open(part.path, "rb") as file:
        file.seek(part.start + offset)
        found = file.read(length)
    if len(found) < length:
        raise ModelError(
            f"{part.path}: expected {length} bytes from {part.start + offset}, got {len(found)}. Fetch it again."
        )
    return found


class PieceStore:
    """A device's folder of pieces. One process writes to it at a time.

    Pieces that no manifest of this process has named are of other models, or of larger parts: they stay as long as
    there is room, and those that were used last the longest.

    Args:
      folder: Made if it is not there.
      max_bytes: The most that all pieces together may take, those that are not used any more among them.

    Raises:
      ModelError: The folder holds something else, which pieces could overwrite.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self._max_bytes = folder, max_bytes
        self._in_use = set[str]()  # by name: what a manifest of this process has named
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(path.name for path in folder.iterdir() if not (_known(path.name) or _is_partial(path.name)))
        if foreign:
            raise ModelError(
                f"{folder}: expected an empty folder or one that holds pieces of a model, got {foreign[0]}. "
                "Name another folder."
            )

    def missing(self, manifest: Sequence[Piece]) -> list[tuple[Piece, int]]:
        """The pieces to be asked for: each that is not here, and the offset to go on from.

        What is here under a piece's name but is another file goes away.

        Raises:
          MalformedMessage: The manifest is not one of a model of at most `max_bytes`.
          ModelError: The disk has no room for what is missing.
        """
        self._check(manifest)
        self._make_room(manifest)
        wanted = [(piece, self._resume(piece)) for piece in manifest if not self._has(piece)]
        need = sum(piece.length - offset for piece, offset in wanted)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise ModelError(f"{self.folder}: expected room for {need} bytes, got {free}. Free some, or lower the cut.")
        return wanted

    def append(self, piece: Piece, offset: int, data: bytes) -> bool:
        """Adds bytes to a piece; true where that made it whole, and it is there under its name.

        Raises:
          MalformedMessage: The bytes do not follow those that are here, or the whole is not what was announced; it is
            then fetched from its beginning.
          ModelError: They cannot be written.
        """
        _check_piece(piece)
        partial = self._partial(piece)
        have = partial.stat().st_size if partial.exists() else 0
        if offset != have or offset + len(data) > piece.length:
            raise MalformedMessage(
                f"piece {piece.name}: expected at most {piece.length - have} bytes from {have}, got {len(data)} from "
                f"{offset}. Go on where the last ended."
            )
        try:
            with open(partial, "ab") as file:
                file.write(data)
                file.flush()
                if have + len(data) < piece.length:
                    return False
                os.fsync(file.fileno())
        except OSError as error:
            raise ModelError(f"{partial}: expected room for {len(data)} bytes, got {error}. Free some.") from error
        self._accept(piece, partial)
        return True

    def _accept(self, piece: Piece, partial: Path) -> None:
        """Gives a whole file its name, if it is what was announced."""
        try:
            found = sha256(partial)
            if found != piece.sha256:
                raise MalformedMessage(
                    f"piece {piece.name}: expected SHA-256 {piece.sha256[:16]}..., got {found[:16]}.... Fetch it again."
                )
            _check_content(piece.name, partial)
        except MalformedMessage:
            partial.unlink()
            raise
        os.replace(partial, self.folder / piece.name)
        sync_folder(self.folder)

    def _has(self, piece: Piece) -> bool:
        path = self.folder / piece.name
        if path.is_file() and path.stat().st_size == piece.length and sha256(path) == piece.sha256:
            os.utime(path)  # when it was used last
            return True
        path.unlink(missing_ok=True)
        partial = self._partial(piece)
        if not partial.exists() or partial.stat().st_size < piece.length:
            return False
        try:
            self._accept(piece, partial)  # the process ended when the last byte was there
        except MalformedMessage:
            return False  # the disk lost some of it: from its beginning, then
        return True

    def _make_room(self, manifest: Sequence[Piece]) -> None:
        """Removes pieces that are not used any more, the oldest first, until those of the manifest have room.

        Raises:
          MalformedMessage: There is no room beside those that are used.
        """
        self._in_use |= {piece.name for piece in manifest}
        announced = {piece.name for piece in manifest}
        files = {path: path.stat() for path in self.folder.iterdir()}
        of = {path: _piece_of(path.name) for path in files}
        beside = [path for path in files if of[path] in self._in_use - announced]
        old = sorted((path for path in files if of[path] not in self._in_use), key=lambda path: files[path].st_mtime)
        room = self._max_bytes - sum(piece.length for piece in manifest) - sum(files[path].st_size for path in beside)
        if room < 0:
            raise MalformedMessage(
                f"manifest: expected pieces for which there is room among {self._max_bytes} bytes beside those of "
                f"this run, got {-room} bytes more. {WHOSE}"
            )
        count, left = MOST_PIECES - len(manifest) - len(beside), sum(files[path].st_size for path in old)
        for number, path in enumerate(old):
            if left <= room and len(old) - number <= count:
                return
            path.unlink()
            left -= files[path].st_size

    def _resume(self, piece: Piece) -> int:
        """The bytes of this piece that are here; those of other versions of it go away."""
        partial = self._partial(piece)
        for other in self.folder.glob(f".{piece.name}.*.part"):
            if other != partial:
                other.unlink()
        return partial.stat().st_size if partial.exists() else 0

    def _partial(self, piece: Piece) -> Path:
        return self.folder / f".{piece.name}.{piece.sha256[:16]}.part"

    def _check(self, manifest: Sequence[Piece]) -> None:
        for piece in manifest:
            _check_piece(piece)
        if len({piece.name for piece in manifest}) != len(manifest):
            raise MalformedMessage(f"manifest: expected each piece once, got one twice. {WHOSE}")
        total = sum(piece.length for piece in manifest)
        if total > self._max_bytes:
            raise MalformedMessage(
                f"manifest: expected pieces of at most {self._max_bytes} bytes, got {total}. Allow more, or use a "
                "smaller model."
            )


def _known(name: str) -> bool:
    return name in ("config.json", INDEX, *TOKENIZER) or TENSORS.fullmatch(name) is not None


def _is_partial(name: str) -> bool:
    return _piece_of(name) != name and _known(_piece_of(name))


def _piece_of(name: str) -> str:
    """The piece of which this is the file, whole or in part."""
    part = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.part", name)
    return name if part is None else part[1]


def _check_piece(piece: Piece) -> None:
    """Raises MalformedMessage for a name that is no piece's, a length out of bounds or what is no digest."""
    most = 2**63 if TENSORS.fullmatch(piece.name) else CONFIG_BYTES if piece.name == "config.json" else SMALL_BYTES
    if not _known(piece.name) or not 0 < piece.length <= most or not re.fullmatch("[0-9a-f]{64}", piece.sha256):
        raise MalformedMessage(
            f"piece {piece.name[:80]!r}: expected a file of a model, of 1 to {most} bytes, and its SHA-256, got "
            f"{piece.length} bytes and {piece.sha256[:80]!r}. {WHOSE}"
        )


def _check_content(name: str, path: Path) -> None:
    """Raises MalformedMessage where a file with the right digest is not what its name says, or leads elsewhere."""
    try:
        if TENSORS.fullmatch(name):
            with safe_open(path, framework="pt"):
                return
        if name == INDEX:
            index = json.loads(path.read_bytes())
            if set(index) != {"weight_map"} or not all(map(TENSORS.fullmatch, index["weight_map"].values())):
                raise ValueError("other files than pieces")
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise MalformedMessage(f"piece {name}: expected what its name says, got {error}. {WHOSE}") from error
