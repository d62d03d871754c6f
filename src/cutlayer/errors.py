"""The things that can go wrong, as a tree.

CutlayerError
|- UserError (exit code 2)       something a person gave us is wrong; one line, no traceback
|  |- ConfigError                a run file, a flag or an option
|  |- DataError                  a data file, a column, a label
|  |- ModelError                 a model folder, an architecture, a tensor that is not there
|  |- AdapterError               an adapter that fits nothing, or a folder that holds none
|  |- UnplacedError              a device can be given no part
|  |- BudgetError                a device cannot hold its part
|  |- CheckpointError            a checkpoint that is foreign or absent, or has no room
|  |  '- TornError               a checkpoint that is not as it was written
|  |- DivergedError              a loss that is not finite
|  |- StragglersError            a round that no device finished
|  |- WorkerLost                 a process of the server that died and could not be begun again
|  '- JoinError                  a device that its server refuses, or cannot reach
|     '- Declined                what a server asks of a device that its owner does not allow
'- WireError                     a message that may not be believed, or one that will not come
   |- MalformedMessage           its version or bytes do not fit; never retried
   |- Refused                    a device that may not come in, or what it sent does not fit its plan
   |- DeviceGone                 a device takes no further part in a round; the round goes on without it
   '- SpanLost                   a machine that runs blocks for a device does not answer; it asks another

Every message reads `<where>: <expected>, got <value>. <what to change>.` and is one line of printable characters,
whatever it quotes (`shown.py`).
To add a class: put it in the tree, say in one sentence when it happens, and reach it from a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cutlayer.shown import shown


class CutlayerError(Exception):
    """The root: catching it catches everything that cutlayer raises on purpose. Pickled, it keeps its fields."""

    def __str__(self) -> str:
        return shown(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[CutlayerError], args: tuple[Any, ...]) -> CutlayerError:
    return kind.__new__(kind, *args)


class UserError(CutlayerError):
    """Something that a person gave is wrong. The command line prints it as one line and exits with 2."""


class ConfigError(UserError, ValueError):
    """The run file, a flag or an option says something that cannot be done.

    Example:
      >>> from cutlayer import ConfigError, cut_at, everyone
      >>> from cutlayer.testing.playground import planned
      >>> try:
      ...     planned(everyone(), cut_at(9))
      ... except ConfigError as error:
      ...     print(error)
      method.cut: expected 0 to 3, the model's blocks, got 9. Change method.cut.
    """


class DataError(UserError, ValueError):
    """A data file is missing, empty or malformed, or lacks a column or a label."""


class ModelError(UserError, ValueError):
    """A model folder is missing or incomplete, or its architecture has no family row."""


class AdapterError(UserError, ValueError):
    """An adapter attaches to nothing, or the folder holds no adapter for this model."""


class UnplacedError(ConfigError):
    """A planner can give a device no part, such as one whose owner lends too few blocks.

    Attributes:
      device: the device's name.
    """

    def __init__(self, message: str, *, device: str) -> None:
        super().__init__(message)
        self.device = device


class BudgetError(UserError):
    """A device has too little memory for its part.

    Attributes:
      device: the device's name.
      need_bytes: what the smallest admissible part needs.
      have_bytes: what the device offers.
    """

    def __init__(self, message: str, *, device: str, need_bytes: int, have_bytes: int) -> None:
        super().__init__(message)
        self.device = device
        self.need_bytes = need_bytes
        self.have_bytes = have_bytes


class CheckpointError(UserError):
    """A checkpoint is torn, was written by another run, or is not there."""


class TornError(CheckpointError):
    """A checkpoint is not as it was written; one that was written before it may be."""


class DivergedError(UserError):
    """A loss stopped being finite.

    Attributes:
      device: whose batch it was.
      round: the round, counted from 0.
      step: the device's local step in that round, counted from 0.
    """

    def __init__(self, message: str, *, device: str, round: int, step: int) -> None:
        super().__init__(message)
        self.device = device
        self.round = round
        self.step = step


class StragglersError(UserError):
    """A round that every device left, or was too late for: there is nothing to go on from."""


class WorkerLost(UserError):
    """A process of the server that served some of its devices has died too often, or cannot be begun."""


class JoinError(UserError):
    """A device cannot join: its server refuses it, or does not answer."""


class Declined(JoinError):
    """A server asks a device for something that the device's owner has not allowed. The server is told so."""


class WireError(CutlayerError):
    """Something arrived from another machine that may not be believed, or will not arrive at all.

    Attributes:
      reason: the word under which the server counts it.
    """

    reason = "malformed"


class MalformedMessage(WireError, ValueError):
    """A frame whose version, header or length does not fit. Never retried."""


class Refused(WireError):
    """A device may not come in, or what it sent does not fit its part of the plan. Nothing was computed of it.

    The message holds no secret. The server counts by device and reason and goes on without the device.

    Attributes:
      reason: which check it failed, as a slug that can be counted (`wrong-token`, `not-finite`).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DeviceGone(WireError):
    """A device takes no further part in this round. The server's end of its link raises it; the round goes on.

    Attributes:
      device: its name.
      reason: the word under which it is counted: `deadline`, `quorum`, `revoked`, ...
    """

    def __init__(self, message: str, *, device: str, reason: str) -> None:
        super().__init__(message)
        self.device = device
        self.reason = reason


class SpanLost(WireError):
    """A machine that runs blocks for a device has failed, is gone, or refuses. The device asks another, or again."""


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group and its groups, in their order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
