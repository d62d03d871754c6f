"""What one end sent in a round and may have to send again.

A device forgets a frame when the server has it: whatever happens to the server then begins the round again. The server
keeps all frames of the round, for a device that begins it again; beyond `KEPT_BYTES` those that have arrived lie on the
disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from cutlayer.wire.packets import Buffer

KEPT_BYTES = 16 * 2**20
"""Of a device's frames in the server's memory: a round of a small model, a few steps of a large one."""


class Sent:
    """The frames of one round, numbered from 1.

    Args:
      keeps: Whether frames are kept after they have arrived.
      folder: Where those beyond `KEPT_BYTES` go.
      arrived: How many the other end has from an earlier life of this end: they need not be sent again.

    Attributes:
      last: number of the newest frame.
      handed: of the newest that a carrier has taken whole.
      arrived: of the newest that the other end is known to have.
    """

    def __init__(self, *, keeps: bool, folder: Path | None = None, arrived: int = 0) -> None:
        self.last = 0
        self.handed = self.arrived = arrived
        self._keeps, self._folder = keeps, folder
        self._frames: dict[int, Sequence[Buffer]] = {}
        self._lengths: dict[int, int] = {}
        self._held_bytes = 0  # of all lengths
        self._on_disk: dict[int, tuple[int, int]] = {}  # number -> offset, length
        self._file: IO[bytes] | None = None

    def add(self, frame: Sequence[Buffer]) -> int:
        """Takes a frame and returns its number."""
        self.last += 1
        if self.last > self.arrived or self._keeps:
            self._frames[self.last] = frame
            self._lengths[self.last] = sum(len(part) for part in frame)
            self._held_bytes += self._lengths[self.last]
        return self.last

    def frame(self, number: int) -> Sequence[Buffer]:
        """The frame of this number."""
        if number in self._on_disk:
            offset, length = self._on_disk[number]
            assert self._file is not None
            self._file.seek(offset)
            return [self._file.read(length)]
        return self._frames[number]

    def has(self, number: int) -> bool:
        return number in self._frames or number in self._on_disk

    def arrive(self, number: int) -> None:
        """The other end has all frames up to this one."""
        for done in range(self.arrived + 1, min(number, self.last) + 1):
            if not self._keeps:
                self._frames.pop(done, None)
                self._held_bytes -= self._lengths.pop(done, 0)
        self.arrived = max(self.arrived, min(number, self.last))
        if self._keeps and self._folder is not None and self._held_bytes > KEPT_BYTES:
            self._spill(self._folder)

    @property
    def due(self) -> int:
        """Of the newest frame that the other end must have by now; 0 once nobody needs any."""
        return self.handed if self._lengths or self._on_disk or not self._keeps else 0

    def forget(self) -> None:
        """Nobody will ask for these frames again."""
        self._frames.clear()
        self._lengths.clear()
        self._held_bytes = 0
        self._on_disk.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def under_way_bytes(self) -> int:
        """Handed over and not known to have arrived."""
        return sum(self._lengths.get(number, 0) for number in range(self.arrived + 1, self.handed + 1))

    def _spill(self, folder: Path) -> None:
        for number in [number for number in self._frames if number <= self.arrived]:
            if self._held_bytes <= KEPT_BYTES:
                return
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open for as long as the round)
            offset = self._file.seek(0, 2)
            for part in self._frames.pop(number):
                self._file.write(part)
            length = self._lengths.pop(number)
            self._on_disk[number] = (offset, length)
            self._held_bytes -= length

    def __del__(self) -> None:
        self.forget()  # whoever drops a session need not know of its file
