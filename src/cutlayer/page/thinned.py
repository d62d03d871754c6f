"""A number per round in bounded room: spans of equally many rounds, each with its mean, its least and its most.

When there are too many spans, each two become one, and from then on a span has twice as many rounds: so ten thousand
rounds are a few hundred points, made as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Span:
    """Some rounds in a row.

    Attributes:
      place: of the span, counted in spans.
      xs: where its last round is, by axis.
      low, high: the least and the most of its numbers.
      total, count: their sum and how many there are.
    """

    place: int
    xs: Sequence[float]
    low: float
    high: float
    total: float
    count: int

    @property
    def mean(self) -> float:
        """The mean of its numbers."""
        return self.total / self.count

    def take(self, later: Span) -> None:
        """Makes the span that follows a part of this one."""
        self.xs = later.xs
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        self.total, self.count = self.total + later.total, self.count + later.count


class Thinned:
    """Numbers by round.

    Args:
      most: spans, at most; two or more.

    Example:
      >>> thinned = Thinned(4)
      >>> for round in range(6):
      ...     thinned.add(round, [round + 1], float(round))
      >>> [(span.xs, span.low, span.mean, span.high) for span in thinned]
      [([2], 0.0, 0.5, 1.0), ([4], 2.0, 2.5, 3.0), ([6], 4.0, 4.5, 5.0)]
    """

    def __init__(self, most: int) -> None:
        self._most, self._rounds = most, 1
        self._spans: list[Span] = []

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, round: int, xs: Sequence[float], value: float) -> None:
        """Takes the number of a round; rounds come in order, and some may have none.

        Args:
          round: counted from 0.
          xs: where it is, by axis.
          value: finite.
        """
        place, last = round // self._rounds, self._spans[-1] if self._spans else None
        if last is not None and last.place == place:
            last.xs = xs
            last.low, last.high = min(last.low, value), max(last.high, value)
            last.total, last.count = last.total + value, last.count + 1
            return
        self._spans.append(Span(place, xs, value, value, value, 1))
        while len(self._spans) > self._most:
            self._rounds *= 2
            spans, self._spans = self._spans, []
            for span in spans:
                span.place //= 2
                self._put(span)

    def _put(self, span: Span) -> None:
        if self._spans and self._spans[-1].place == span.place:
            self._spans[-1].take(span)
        else:
            self._spans.append(span)
