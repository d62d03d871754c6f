"""The families by task, and rows of long tests that take turns.

`make test` runs some rows of a long table and `make test-all` all of them. Which ones moves along the diagonal, so that
of two axes that are written as one list (methods by codecs, families by tasks) every value of each gets its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from cutlayer.model.families import FAMILIES

CASES = [(row.name, task) for row in FAMILIES.values() for task in row.tasks]
"""Every family with every task that it is known for."""


def by_turns(rows: Iterable[Any], *, one_of: int, always: Iterable[Any] = ()) -> Iterator[ParameterSet]:
    """The rows; all but one of `one_of` are slow.

    Args:
      rows: names, or tuples of what a test is parametrized with.
      one_of: how many rows share a turn.
      always: rows that are quick whatever their turn.
    """
    kept = list(always)
    for at, row in enumerate(rows):
        quick = (at + at // one_of) % one_of == 0 or row in kept
        yield pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=[] if quick else [pytest.mark.slow])
