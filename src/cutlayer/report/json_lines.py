"""JSON as this project writes it, and a file of such lines that can be cut back to a remembered length.

Keys are sorted and floats keep every digit (`repr`), so equal values are equal bytes. JSON has no NaN and no
infinity: a number that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cutlayer.errors import CheckpointError


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


class JsonLines:
    """An append-only file of one JSON object per line.

    Whatever a kill leaves behind the last commit point, a torn line included, `rewind` cuts off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the rows and returns when they are on the disk."""
        lines = "".join(to_json(row) + "\n" for row in rows)
        with open(self.path, "ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def position(self) -> int:
        """Length in bytes: what a checkpoint remembers. 0 where nothing was written."""
        return self.path.stat().st_size if self.path.exists() else 0

    def check(self, position: int) -> None:
        """Refuses a file that cannot be the one whose `position` was remembered.

        Raises:
          CheckpointError: it is shorter, or no line ends there.
        """
        size = self.position()
        if not 0 <= position <= size:
            raise CheckpointError(
                f"{self.path}: expected at least the {position} bytes that the checkpoint remembers, "
                f"got {size}. The file was changed since; start a new run with another --out."
            )
        if position and self._byte_before(position) != b"\n":
            raise CheckpointError(
                f"{self.path}: expected a line to end at byte {position} as the checkpoint remembers, "
                "got the middle of one. The file was changed since; start a new run with another --out."
            )

    def _byte_before(self, position: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(position - 1)
            return file.read(1)

    def rewind(self, position: int) -> None:
        """Cuts the file back to `position`, as `check` does or refuses."""
        self.check(position)
        if self.position() > position:
            with open(self.path, "r+b") as file:
                file.truncate(position)
                os.fsync(file.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows, one by one.

        Raises:
          CheckpointError: a line is not a JSON object; a resume rewinds past a torn one.
        """
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield self._parse(line, number)

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise CheckpointError(
                f"{self.path}:{number}: expected a JSON object on one line, got {line[:60]!r}. "
                "Resume the run with --resume, which cuts off a torn line."
            )
        return row
