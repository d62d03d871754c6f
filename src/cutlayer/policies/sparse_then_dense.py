"""Updates that are packed hard at the beginning of a run and less and less towards its end.

A pair of numbers says how hard: the share of an update that is kept, by magnitude, and the bits of each number kept.
From the pair that a run begins with, both go one notch up at a time, until all is sent as it is.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan
from cutlayer.wire.codecs import NONE, Codec, codec_by_name
from cutlayer.wire.messages import Role
from cutlayer.wire.spelled import BITS

SHARES = (0.1, 0.25, 0.5, 1.0)
"""The notches of the share that is kept; those of the bits are the codec's."""


@dataclass(frozen=True, slots=True)
class PackedUpdate(Clause):
    """The packing of a device's update, where the run file leaves that open.

    Attributes:
      spelled: as `wire/codecs.py` spells it.
    """

    spelled: str

    def codec(self, role: Role, codec: Codec, at: str) -> Codec:  # noqa: ARG002
        """See `packing.ChoosesCodecs.codec`."""
        return codec_by_name(self.spelled, rows=False) if role == "update" and codec is NONE else codec


def sparse_then_dense(share: float, bits: int, notches: int) -> Planner:
    """Says how updates are packed.

    Args:
      share: Of an update's numbers that are kept in the first round, above 0 and at most 1.
      bits: Of each of them: 4, 8, 16 or 32.
      notches: Into how many parts of equal length the run is divided; with each part both go up by a notch. 1 leaves
        them as they are.

    Raises:
      ConfigError: Another share, other bits, or no part.

    Example:
      >>> from cutlayer import everyone, sparse_then_dense
      >>> from cutlayer.testing.playground import planned
      >>> planner = sparse_then_dense(0.25, 8, notches=3)
      >>> [planned(everyone(), planner, round=n, rounds=6).devices[0].clauses[0].spelled for n in (0, 2, 5)]
      ['sparse:0.25:8', 'sparse:0.5:16', 'none']
    """
    if not 0 < share <= 1:
        raise ConfigError(f"method.share: expected above 0 and at most 1, got {share:g}. Change method.share.")
    if bits not in BITS:
        raise ConfigError(f"method.bits: expected 4, 8, 16 or 32, got {bits}. Change method.bits.")
    if notches < 1:
        raise ConfigError(f"method.notches: expected at least 1, got {notches}. Change method.notches.")

    def codec(ups: int) -> str:
        kept = share if not ups else (*SHARES, *[1.0] * ups)[bisect_right(SHARES, share) + ups - 1]
        finer = (*BITS, *[BITS[-1]] * ups)[BITS.index(bits) + ups]
        return "none" if kept == 1 and finer == BITS[-1] else f"sparse:{kept:g}:{finer}"

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        now = PackedUpdate(codec(min(notches - 1, plan.round * notches // situation.rounds)))
        return plan.with_each(lambda device: device.having(now))

    return planner
