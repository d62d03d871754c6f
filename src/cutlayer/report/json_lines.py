"""JSON as this project writes it, and a file of such lines that can be cut back to where a checkpoint left it.

Keys are sorted and floats keep every digit (`repr`), so equal values are equal bytes. JSON has no NaN and no
infinity: a number that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cutlayer.errors import CheckpointError

PIECE_BYTES = 2**20


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON text.

    Example:
      >>> to_json({"loss": float("nan"), "accuracy": 0.1})
      '{"accuracy": 0.1, "loss": null}'
    """
    return json.dumps(_finite(value), sort_keys=True, allow_nan=False, ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Position(NamedTuple):
    """The length and the checksum of a growing file, which a checkpoint remembers.

    Attributes:
      num_bytes: its length.
      crc32: of all these bytes.
    """

    num_bytes: int = 0
    crc32: int = 0

    def after(self, more: bytes) -> Position:
        """The position when `more` has been written."""
        return Position(self.num_bytes + len(more), zlib.crc32(more, self.crc32))


class JsonLines:
    """An append-only file of one JSON object per line.

    Whatever a kill leaves behind the last commit point, a torn line included, `rewind` cuts off.

    Args:
      path: The file.
      only_shown: Whether nothing depends on its rows but what people are shown: then a line that was damaged is left
        out, and no reason to stop.
      fields: What every row has, and of which types: another object is as good as a damaged line. Of names with `or`
        between them it has one.
    """

    def __init__(
        self, path: Path, *, only_shown: bool = False, fields: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.path, self._only_shown, self._fields = path, only_shown, fields
        self._position: Position | None = None  # not known before this process has read the file

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the rows and returns when they are on the disk."""
        before, lines = self.position(), "".join(to_json(row) + "\n" for row in rows).encode()
        self._position = None  # until all of it is written
        with open(self.path, "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._position = before.after(lines)

    def position(self) -> Position:
        """The position of the end of the file."""
        if self._position is None:
            self._position = self._read(self._size())
        return self._position

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _read(self, num_bytes: int) -> Position:
        """The position after so many bytes."""
        position = Position()
        if num_bytes:
            with open(self.path, "rb") as file:
                while piece := file.read(min(PIECE_BYTES, num_bytes - position.num_bytes)):
                    position = position.after(piece)
        return position

    def check(self, position: Position) -> None:
        """Refuses a file that cannot be the one whose `position` was remembered.

        Raises:
          CheckpointError: it is shorter, or was changed before that position.
        """
        if self._only_shown:
            return
        size = self._size()
        if not 0 <= position.num_bytes <= size:
            raise CheckpointError(
                f"{self.path}: expected at least the {position.num_bytes} bytes that the checkpoint remembers, "
                f"got {size}. The file was changed since; start a new run with another --out."
            )
        if (found := self._read(position.num_bytes)) != position:
            raise CheckpointError(
                f"{self.path}: expected a CRC-32 of {position.crc32:08x} of the first {position.num_bytes} bytes, as "
                f"the checkpoint remembers, got {found.crc32:08x}. The file was changed since; start a new run with "
                "another --out."
            )

    def rewind(self, position: Position) -> None:
        """Cuts the file back to `position`, as `check` does or refuses."""
        self.check(position)
        self.cut_off(position)

    def cut_off(self, position: Position) -> None:
        """Cuts off what stands behind a position that was checked."""
        if self._size() > position.num_bytes:
            with open(self.path, "r+b") as file:
                file.truncate(position.num_bytes)
                os.fsync(file.fileno())
        self._position = None if self._only_shown else position  # it may have been changed

    def num_rows(self) -> int:
        """Lines that are whole; one that a kill tore has no end."""
        return self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows, one by one.

        Raises:
          CheckpointError: a line is not a JSON object with the fields; a resume rewinds past a torn one.
        """
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                row = _object(line)
                if row is not None and self._has_fields(row):
                    yield row
                elif not self._only_shown:
                    raise CheckpointError(
                        f"{self.path}:{number}: expected a JSON object on one line{self._with()}, got {line[:60]!r}. "
                        "Resume the run with --resume, which cuts off a torn line."
                    )

    def _has_fields(self, row: Mapping[str, Any]) -> bool:
        return all(
            any(isinstance(row.get(name), kind) for name in names.split(" or ")) for names, kind in self._fields.items()
        )

    def _with(self) -> str:
        return f", with {', '.join(self._fields)}" if self._fields else ""


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
