"""The limits that a device's owner sets its server: which data may be read, what of it may leave, for how long.

    --task KIND            the run learns nothing else
    --text COLUMN,...      columns that may be read as text, and
    --label COLUMN,...     as labels; where either is said, no other column is read
    --least-blocks N       hidden states leave after N blocks at the least
    --never labels         labels of samples never leave; nor do `counts` (of samples by class), or `activations`
    --only METHOD,...      the run's method is one of these
    --rounds N             the device takes part in so many rounds
    --until TIME           and no longer than that

A server is held to them when the device comes, as far as it can be known then, and at every question: a plan may change
from round to round. What a shape of a round promises (`Shape`) is held like what the owner demands: where labels stay
with devices, no plan makes them leave. What a method sends is never looked up by its name: it follows from the shape
and the plan, and `lent.py` looks at each message again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, get_args

from cutlayer.data.source import Columns
from cutlayer.errors import ConfigError, Declined
from cutlayer.reading import TaskKind

if TYPE_CHECKING:  # what an owner says is read before torch is imported
    from cutlayer.device.shape import Shape
    from cutlayer.types import DevicePlan

NEVER = ("labels", "counts", "activations")
"""Kinds of data that an owner may say never leave."""
AS_LABELS = ("label",)
"""Fields of `Columns` that are read as labels; all others are read as text."""


@dataclass(frozen=True, slots=True)
class Leaves:
    """The part of a device's data that leaves it while it trains or judges under a plan.

    Attributes:
      blocks: after how many blocks hidden states do; None where none leave.
      labels: whether labels of samples do.
      counts: whether it is said how many samples are of each class.
    """

    blocks: int | None
    labels: bool
    counts: bool

    @classmethod
    def of(cls, plan: DevicePlan, reads: tuple[int, int | None], *, counts: bool = False) -> Leaves:
        """The part that leaves under a plan: of a device that does not hold the whole model, hidden states, and labels
        unless it holds the head.

        Args:
          plan: The device's.
          reads: The blocks that it has by itself under this plan, as of `Shape.reads`.
          counts: Whether it is asked for counts by class.
        """
        cut, top = reads
        alone = top is not None and top <= cut
        return cls(None if alone else cut, not (alone or plan.head), counts)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that the owner sets; by default everything is allowed.

    Attributes:
      task: what may be learned; None for anything.
      text: columns that may be read as text.
      label: columns that may be read as labels; no other column may be read where either is said.
      least_blocks: blocks after which hidden states may leave.
      never: what may not leave, of `NEVER`.
      only: names of methods; none for any.
      rounds: in how many the device takes part; None for all.
      until: a time, in seconds since 1970; None for ever.
      clock: says what time it is, likewise.
    """

    task: TaskKind | None = None
    text: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    least_blocks: int = 0
    never: frozenset[str] = frozenset()
    only: tuple[str, ...] = ()
    rounds: int | None = None
    until: float | None = None
    clock: Callable[[], float] = field(default=time.time, compare=False)

    @classmethod
    def read(
        cls,
        *,
        task: str = "",
        text: str | Sequence[str] = (),
        label: str | Sequence[str] = (),
        least_blocks: int = 0,
        never: str | Sequence[str] = (),
        only: str | Sequence[str] = (),
        rounds: int | None = None,
        until: str = "",
    ) -> Limits:
        """The limits as a person writes them: lists with commas, a time as `2026-12-24T18:00` or `18:00`.

        Raises:
          ConfigError: One of them is none.

        Example:
          >>> sorted(Limits.read(never="labels,counts").never)
          ['counts', 'labels']
        """
        if task not in ("", *get_args(TaskKind)):
            raise ConfigError(f"task: expected {' or '.join(get_args(TaskKind))}, got {task!r}. Change it.")
        words = _listed(never)
        strange = [word for word in words if word not in NEVER]
        if strange:
            raise ConfigError(f"never: expected some of {', '.join(NEVER)}, got {strange[0]!r}. Change it.")
        for name, number, least in (("least-blocks", least_blocks, 0), ("rounds", rounds, 1)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                raise ConfigError(f"{name}: expected a whole number of at least {least}, got {number!r}. Change it.")
        return cls(
            task=next((kind for kind in get_args(TaskKind) if kind == task), None),
            text=_listed(text),
            label=_listed(label),
            least_blocks=least_blocks,
            never=frozenset(words),
            only=_listed(only),
            rounds=rounds,
            until=_time(until, datetime.now().astimezone()) if until else None,
        )

    # ------------------------------------------------------------------ when the device comes

    def check_run(self, shape: Shape, method: str, task: TaskKind, columns: Columns) -> None:
        """Holds a run to the limits, as far as its server has said what it is.

        Args:
          shape: Of its rounds.
          method: By the name that the server says.
          task: What is learned.
          columns: Those that the server names.

        Raises:
          Declined: The owner does not allow it.
        """
        self.check_time()
        if self.only and method not in self.only:
            raise _declined(f"the method {' or '.join(self.only)} (--only)", method)
        if self.task is not None and task != self.task:
            raise _declined(f"a run that learns {self.task} (--task)", task)
        self.check_columns(columns)
        if "activations" in self.never and shape.splits:
            raise _declined("rounds in which no hidden states leave (--never activations)", f"the shape {shape.name}")
        if "labels" in self.never and shape.sends_labels:
            raise _declined("rounds in which no labels leave (--never labels)", f"the shape {shape.name}")
        if "counts" in self.never and task == "classification" and not shape.labels_stay:
            raise _declined("rounds that ask for no counts by class (--never counts)", f"the shape {shape.name}")

    def check_columns(self, columns: Columns) -> None:
        """Holds columns to the limits.

        Raises:
          Declined: One of them may not be read, or not as this.
        """
        if not self.text and not self.label:
            return
        for role, column in named(columns):
            lent, flag = (self.label, "--label") if role in AS_LABELS else (self.text, "--text")
            if column not in lent:
                allowed = ", ".join(map(repr, lent)) or "none"
                raise _declined(f"of the columns that are lent ({flag}: {allowed})", f"{column!r} as {role}")

    # ------------------------------------------------------------------ at every question

    def check_time(self) -> None:
        """Raises Declined where the time is over."""
        if self.until is not None and self.clock() >= self.until:
            raise _declined(f"no question after {self.until_text} (--until)", "one later")

    def check_leaves(self, leaves: Leaves) -> None:
        """Holds what would leave to the limits.

        Raises:
          Declined: The owner does not allow it.
        """
        if leaves.labels and "labels" in self.never:
            raise _declined("a plan in which no labels leave (--never labels)", "one in which they do")
        if leaves.counts and "counts" in self.never:
            raise _declined("no question for counts by class (--never counts)", "one")
        if leaves.blocks is None:
            return
        if "activations" in self.never:
            raise _declined("a plan in which no hidden states leave (--never activations)", "one in which they do")
        if leaves.blocks < self.least_blocks:
            raise _declined(
                f"a plan in which hidden states leave after {self.least_blocks} blocks or more (--least-blocks)",
                f"one with {leaves.blocks}",
            )

    def check_rounds(self, taken: int) -> None:
        """Raises Declined for a round after so many in which the device has taken part already."""
        if self.rounds is not None and taken >= self.rounds:
            raise _declined(f"at most {self.rounds} rounds (--rounds)", "one more")

    @property
    def until_text(self) -> str:
        """The end of the time that the owner allows, in words."""
        assert self.until is not None, "asked where there is one"
        return datetime.fromtimestamp(self.until).astimezone().isoformat(timespec="minutes")


EVERYTHING = Limits()
"""An owner who has said nothing."""


def named(columns: Columns) -> list[tuple[str, str]]:
    """The columns that play a part: the part, and the column."""
    parts = ((one.name, getattr(columns, one.name)) for one in fields(columns))
    return [(role, column) for role, column in parts if column is not None]


def in_words(columns: Columns, roles: Callable[[str], bool] = lambda _role: True) -> str:
    """The columns with these parts, as a sentence names them."""
    found = [repr(column) for role, column in named(columns) if roles(role)]
    return f"column{'s' * (len(found) > 1)} {' and '.join(found)}" if found else "the columns that are found"


def _listed(given: str | Iterable[str]) -> tuple[str, ...]:
    words = given.split(",") if isinstance(given, str) else list(given)
    return tuple(word.strip() for word in words if word.strip())


def _time(text: str, now: datetime) -> float:
    """The time in seconds since 1970: an hour of this day is that of the next where it is over."""
    try:
        if "T" not in text and "-" not in text:
            hour = datetime.strptime(text, "%H:%M")
            then = now.replace(hour=hour.hour, minute=hour.minute, second=0, microsecond=0)
            return (then if then > now else then + timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"until: expected a time such as 2026-12-24T18:00 or 18:00, got {text!r}. Change it."
        ) from error


def _declined(expected: str, got: str) -> Declined:
    return Declined(f"join: expected {expected}, got {got}. The device's owner allows no more.")
