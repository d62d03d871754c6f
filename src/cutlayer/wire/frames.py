"""A message as bytes and back: one small header that is checked, then the tensors as they lie in memory.

    bytes   0..4     magic "CUTL"
            4..8     protocol version, uint32
            8..12    length of the header, uint32
            12..     header, msgpack: [kind, [value of each field], [[path, dtype, shape] of each tensor]]
            then     each tensor's elements, contiguous, in the order of the header

Numbers are little-endian, as are the machines this runs on. The header and every tensor are followed by zeros
up to a multiple of 16 bytes, so that a decoded tensor is aligned where it lies. The path is the field's
name, or `adapter/<tensor name>`. `docs/decisions/0005-frames.md` says why not pickle, JSON or safetensors.

The fields of a kind, their types and their order are those of its dataclass in `messages.py`: a new message needs no
code here, and no frame repeats their names (`docs/decisions/0054-short-headers.md`).
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import torch
from torch import Tensor

from cutlayer.errors import MalformedMessage
from cutlayer.types import Adapter, Clause, DevicePlan
from cutlayer.wire.messages import PROTOCOL_VERSION, Handshake, Message

MAGIC = b"CUTL"
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_ARRAY_TYPES: dict[torch.dtype, np.dtype[Any]] = {
    dtype: np.dtype(np.int16) if dtype is torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in DTYPES.values()
}
"""Numpy's dtypes for those of torch; numpy has no bf16, whose bits pass as int16."""
MAX_DIMS = 8
MAX_ENTRIES = 2**16
"""Longest list in a header. msgpack allocates a list by the length that it claims, before it sees the content."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_KINDS: dict[str, type[Message | Handshake]] = {
    kind.__name__.lower(): kind for kind in (*get_args(Message), *get_args(Handshake))
}
Reader = Callable[[Any], Any]
_PREFIX = struct.Struct("<4sII")
_ALIGNMENT = 16

_HINTS: dict[type[Any], dict[str, Any]] = {kind: get_type_hints(kind) for kind in (*_KINDS.values(), DevicePlan)}
_IS_TENSOR = (Tensor, Tensor | None, Adapter)
_TENSORS = {kind: {name: hint for name, hint in hints.items() if hint in _IS_TENSOR} for kind, hints in _HINTS.items()}
"""Fields of each kind that are tensors, and their types."""
_PLAIN = {
    kind: {name: hint for name, hint in hints.items() if hint not in _IS_TENSOR} for kind, hints in _HINTS.items()
}
"""Fields of each kind that the header carries, and their types."""


def encode(message: Message | Handshake) -> bytes:
    """The frame of `message`; tensors of any device and layout are copied into it once.

    Raises:
      MalformedMessage: when a tensor's dtype has no place on the wire.
    """
    return b"".join(parts(message))


def parts(message: Message | Handshake) -> list[bytes | memoryview]:
    """The frame of `message` as the buffers that it consists of; those of tensors on the CPU are views of them.

    Raises:
      MalformedMessage: when a tensor's dtype has no place on the wire.
    """
    tensors = _tensors_of(message)
    header = _header(message, tensors)
    start = _PREFIX.pack(MAGIC, PROTOCOL_VERSION, len(header)) + header
    buffers: list[bytes | memoryview] = [start + bytes(_padding(len(start)))]
    for _, tensor in tensors:
        if not tensor.nbytes:
            continue
        buffers.append(_elements(tensor))
        if padding := _padding(tensor.nbytes):
            buffers.append(bytes(padding))
    return buffers


def frame_bytes(message: Message | Handshake) -> int:
    """The length of `encode(message)` in bytes, without touching the tensors' elements."""
    tensors = _tensors_of(message)
    start = _PREFIX.size + len(_header(message, tensors))
    return _aligned(start) + sum(_aligned(tensor.nbytes) for _, tensor in tensors)


def decode(frame: bytes | bytearray | memoryview, *, max_bytes: int) -> Message | Handshake:
    """The message in `frame`. Its tensors are views of `frame` and keep it alive: read them, do not write.

    Args:
      frame: what arrived; nothing in it is believed.
      max_bytes: the longest frame that the receiver's plan allows.

    Raises:
      MalformedMessage: when anything in the frame does not fit. Nothing else is raised, whatever the bytes.
    """
    view = memoryview(frame).cast("B")
    header, start = _read_header(view, max_bytes)
    if type(header) is not list or len(header) != 3:
        raise _malformed("frame header", "[kind, values, tensors]", header)
    name, said, entries = header
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise _malformed("frame kind", f"one of {', '.join(_KINDS)}", name)
    values = _read_fields(_READERS[kind], said, name)
    tensors = _read_tensors(entries, view, start)
    values |= {field: _take(tensors, field, hint) for field, hint in _TENSORS[kind].items()}
    if tensors:
        raise _malformed(f"{name} tensors", "only those of its fields", list(tensors))
    return kind(**values)


# ------------------------------------------------------------------ writing


def _tensors_of(message: Message | Handshake) -> list[tuple[str, Tensor]]:
    """The tensors of `message` with their paths, in the order of the fields."""
    found: list[tuple[str, Tensor]] = []
    for name in _TENSORS[type(message)]:
        value = getattr(message, name)
        if isinstance(value, Tensor):
            found.append((name, value))
        elif value is not None:
            found.extend((f"{name}/{key}", tensor) for key, tensor in value.items())
    return found


def _elements(tensor: Tensor) -> memoryview:
    """The elements of a tensor as they lie; of one that does not lie on the CPU in one piece, a copy."""
    if tensor.requires_grad or not tensor.is_cpu or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:  # numpy has none
        tensor = tensor.view(torch.int16)
    elements: memoryview = tensor.numpy().reshape(-1).view(np.uint8).data
    return elements


def _header(message: Message | Handshake, tensors: list[tuple[str, Tensor]]) -> bytes:
    header = (
        type(message).__name__.lower(),
        [getattr(message, name) for name in _PLAIN[type(message)]],
        [(path, _dtype_name(path, tensor), tensor.shape) for path, tensor in tensors],
    )
    packed: bytes = msgpack.packb(header, default=_plain)
    return packed


def _plain(value: Any) -> Any:
    """A plan as the values of its fields; a clause as its name and these."""
    said = [getattr(value, field.name) for field in fields(value)]
    return [type(value).__name__, said] if isinstance(value, Clause) else said


def _dtype_name(path: str, tensor: Tensor) -> str:
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise _malformed(f"tensor {reprlib.repr(path)}", f"a dtype among {', '.join(DTYPES)}", tensor.dtype)
    return name


# ------------------------------------------------------------------ reading


def _read_header(view: memoryview, max_bytes: int) -> tuple[Any, int]:
    """The unpacked header, and where the first tensor starts."""
    if len(view) > max_bytes:
        raise _malformed("frame length", f"at most {max_bytes} bytes", len(view))
    if len(view) < _PREFIX.size:
        raise _malformed("frame length", f"at least {_PREFIX.size} bytes", len(view))
    magic, version, length = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise _malformed("frame magic", MAGIC, magic)
    if version != PROTOCOL_VERSION:
        raise MalformedMessage(
            f"frame version: expected protocol version {PROTOCOL_VERSION}, got {version}. "
            "Install the same version of cutlayer on both ends."
        )
    end = _PREFIX.size + length
    if end > len(view):
        raise _malformed("frame header", f"{length} bytes", len(view) - _PREFIX.size)
    try:
        header = msgpack.unpackb(view[_PREFIX.size : end], max_array_len=min(length, MAX_ENTRIES))
    except ValueError as error:  # msgpack's own errors are ValueErrors, as is text that is not UTF-8
        raise _malformed("frame header", "msgpack", str(error)) from None
    return header, _skip_padding(view, end)


def _read_tensors(entries: object, view: memoryview, start: int) -> dict[str, Tensor]:
    """The tensors by path. Everything that a header can claim is checked before a tensor is made of it."""
    if type(entries) is not list:
        raise _malformed("frame tensors", "a list", entries)
    body = np.asarray(_Window(view))
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        path, dtype, shape = _read_entry(entry, limit=len(view))
        end = start + math.prod(shape) * dtype.itemsize
        if path in tensors:
            raise _malformed("frame tensors", "each path once", path)
        if end > len(view):
            raise _malformed(f"tensor {reprlib.repr(path)}", f"{end - start} bytes", len(view) - start)
        if dtype is torch.bool and (others := bytes(view[start:end]).strip(b"\0\1")):
            raise _malformed(f"tensor {reprlib.repr(path)}", "booleans of 0 and 1", others)
        tensor = torch.from_numpy(np.ndarray(shape, _ARRAY_TYPES[dtype], body, start))
        tensors[path] = tensor.view(dtype) if dtype is torch.bfloat16 else tensor
        start = _skip_padding(view, end)
    if start != len(view):
        raise _malformed("frame length", f"{start} bytes", len(view))
    return tensors


def _read_entry(entry: object, limit: int) -> tuple[str, torch.dtype, list[int]]:
    """One row of the tensor table: path, dtype, shape; `limit` caps the product of the dimensions."""
    if type(entry) is not list or len(entry) != 3:
        raise _malformed("frame tensors", "[path, dtype, shape]", entry)
    path, name, shape = entry
    if type(path) is not str:
        raise _malformed("frame tensors", "a path that is text", path)
    if type(name) is not str or name not in DTYPES:
        raise _malformed("tensor dtype", f"one of {', '.join(DTYPES)}", name)
    if not _is_shape(shape) or math.prod(max(dim, 1) for dim in shape) > limit:
        raise _malformed("tensor shape", f"at most {MAX_DIMS} dimensions that fit the frame", shape)
    return path, DTYPES[name], shape


def _is_shape(value: object) -> TypeGuard[list[int]]:
    return type(value) is list and len(value) <= MAX_DIMS and all(type(dim) is int and dim >= 0 for dim in value)


def _read_fields(readers: Mapping[str, Reader], values: Any, where: str) -> dict[str, Any]:
    """Plain fields in their order, each of its declared type."""
    if type(values) is not list or len(values) != len(readers):
        raise _malformed(f"{where} fields", f"the values of {', '.join(readers) or 'none'}", values)
    return {name: read(value) for (name, read), value in zip(readers.items(), values, strict=True)}


def _readers(kind: type[Any], where: str) -> dict[str, Reader]:
    """The readers of the fields of `kind` that the header carries, by name."""
    return {name: _reader(hint, f"{where} {name}") for name, hint in _PLAIN[kind].items()}


def _reader(hint: Any, where: str) -> Reader:
    """The reader of a field of type `hint`: exact types, no conversion but that of a whole number to a float."""
    expected = "a count" if hint is int else str(hint)
    if get_origin(hint) is UnionType:
        of_value = _reader(get_args(hint)[0], where)
        return lambda value: None if value is None else of_value(value)
    if hint is DevicePlan:
        readers = _readers(DevicePlan, where)
        return lambda value: DevicePlan(**_read_fields(readers, value, where))
    if hint is Clause:
        return lambda value: _read_clause(value, where)
    if get_origin(hint) is tuple:
        of_item = _reader(get_args(hint)[0], where)
        return _checked(where, expected, lambda value: type(value) is list, lambda value: tuple(map(of_item, value)))
    if get_origin(hint) is Literal:
        words = get_args(hint)
        return _checked(where, expected, lambda value: type(value) is str and value in words)
    if hint is float:
        return _checked(where, expected, lambda value: type(value) in (int, float), float)
    if hint is int:
        return _checked(where, expected, lambda value: type(value) is int and value >= 0)
    return _checked(where, expected, lambda value: type(value) is hint)


def _read_clause(value: object, where: str) -> Clause:
    """The name of a clause whose class this process has imported, and the values of its fields."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str or value[0] not in Clause.kinds:
        raise _malformed(where, f"[name, values], the name one of {', '.join(Clause.kinds) or 'none'}", value)
    name, said = value
    return Clause.kinds[name](**_read_fields(_clause_readers(name, where), said, f"{where} {name}"))


@cache
def _clause_readers(name: str, where: str) -> dict[str, Reader]:
    kind: Any = Clause.kinds[name]
    hints = get_type_hints(kind)
    return {field.name: _reader(hints[field.name], f"{where} {name} {field.name}") for field in fields(kind)}


def _checked(where: str, expected: str, fits: Callable[[Any], bool], made: Reader = lambda value: value) -> Reader:
    def read(value: Any) -> Any:
        if not fits(value):
            raise _malformed(where, expected, value)
        return made(value)

    return read


def _take(tensors: dict[str, Tensor], name: str, hint: Any) -> Tensor | Adapter | None:
    """Moves what belongs to the field `name` out of `tensors`."""
    if hint == Adapter:
        paths = [path for path in tensors if path.startswith(f"{name}/")]
        return {path.removeprefix(f"{name}/"): tensors.pop(path) for path in paths}
    if name in tensors:
        return tensors.pop(name)
    if hint is Tensor:
        raise _malformed(f"tensor {name!r}", "a tensor", None)
    return None


class _Window:
    """Bytes that may be read-only, shown to numpy as an array.

    torch has no read-only tensors and warns of a read-only array. The frame is shown as writable instead, and
    whoever gets a tensor of it is told not to write.
    """

    def __init__(self, view: memoryview) -> None:
        self.owner = view  # numpy keeps this object alive as the array's base, and thereby the frame
        interface = np.frombuffer(view, np.uint8).__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


# ------------------------------------------------------------------ both


def _aligned(num_bytes: int) -> int:
    return num_bytes + _padding(num_bytes)


def _padding(num_bytes: int) -> int:
    return -num_bytes % _ALIGNMENT


def _skip_padding(view: memoryview, end: int) -> int:
    """The next aligned position, after zeros."""
    start = _aligned(end)
    if start > len(view) or any(view[end:start]):
        raise _malformed("frame padding", f"{start - end} zero bytes", bytes(view[end:start]))
    return start


def _malformed(where: str, expected: object, got: object) -> MalformedMessage:
    """The error for bytes that do not fit; what was got is shortened and stays on one line."""
    return MalformedMessage(
        f"{where}: expected {expected}, got {reprlib.repr(got)}. "
        "Drop the frame: it is damaged, or its sender is no cutlayer of this version."
    )


_READERS = {kind: _readers(kind, name) for name, kind in _KINDS.items()}
