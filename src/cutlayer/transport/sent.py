"""The frames that one end sent in a round and may have to send again.

A device forgets a frame when the server has it: whatever happens to the server then begins the round again. The server
keeps all frames of the round, for a device that begins it again; what its memory has no room for lies on the disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from cutlayer.transport.packets import Buffer

LEAST_KEPT_BYTES = 256 * 2**20
SHARE_KEPT = 1 / 8
"""Share of the memory that is free when a server starts: a round of a small fleet, some steps of a large one."""


class Shelf:
    """The store of what the sessions of a server sent in a round: in memory, and on the disk beyond `most_bytes`.

    Args:
      folder: For what is on the disk; made when it is needed.
      most_bytes: In memory.

    Attributes:
      held_bytes: in memory now, of all sessions.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self.held_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.held_bytes > self.most_bytes


def room_for_kept() -> int:
    """Bytes of what a server sent that its memory has room for."""
    return max(LEAST_KEPT_BYTES, int(SHARE_KEPT * psutil.virtual_memory().available))


class Sent:
    """The frames of one round, numbered from 1.

    Args:
      shelf: Where frames are kept after they have arrived; None where they are forgotten.
      arrived: How many the other end has from an earlier life of this end: they need not be sent again.

    Attributes:
      last: number of the newest frame.
      handed: of the newest that a carrier has taken whole.
      arrived: of the newest that the other end is known to have.
    """

    def __init__(self, *, shelf: Shelf | None = None, arrived: int = 0) -> None:
        self.last = 0
        self.handed = self.arrived = arrived
        self._shelf = shelf
        self._frames: dict[int, Sequence[Buffer]] = {}
        self._lengths: dict[int, int] = {}  # of those in memory
        self._on_disk: dict[int, tuple[int, int]] = {}  # number -> offset, length
        self._file: IO[bytes] | None = None

    def add(self, frame: Sequence[Buffer]) -> int:
        """Takes a frame and returns its number."""
        self.last += 1
        if self.last > self.arrived or self._shelf is not None:
            self._frames[self.last] = frame
            self._lengths[self.last] = sum(len(part) for part in frame)
            if self._shelf is not None:
                self._shelf.held_bytes += self._lengths[self.last]
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
        for done in range(self.arrived + 1, min(number, self.last) + 1) if self._shelf is None else ():
            self._frames.pop(done, None)
            self._lengths.pop(done, None)
        self.arrived = max(self.arrived, min(number, self.last))
        if self._shelf is not None and self._shelf.is_full:
            self._spill(self._shelf)

    @property
    def due(self) -> int:
        """The number of the newest frame that the other end must have by now; 0 once nobody needs any."""
        return self.handed if self._lengths or self._on_disk or self._shelf is None else 0

    def forget(self) -> None:
        """Drops these frames, for which nobody will ask again."""
        if self._shelf is not None:
            self._shelf.held_bytes -= sum(self._lengths.values())
        self._frames.clear()
        self._lengths.clear()
        self._on_disk.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def under_way_bytes(self) -> int:
        """Bytes that were handed over and are not known to have arrived."""
        return sum(self._lengths.get(number, 0) for number in range(self.arrived + 1, self.handed + 1))

    def _spill(self, shelf: Shelf) -> None:
        for number in [number for number in self._frames if number <= self.arrived]:
            if not shelf.is_full:
                return
            if self._file is None:
                shelf.folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=shelf.folder)  # noqa: SIM115  (open for as long as the round)
            offset = self._file.seek(0, 2)
            for part in self._frames.pop(number):
                self._file.write(part)
            length = self._lengths.pop(number)
            self._on_disk[number] = (offset, length)
            shelf.held_bytes -= length

    def __del__(self) -> None:
        self.forget()  # whoever drops a session need not know of its file
