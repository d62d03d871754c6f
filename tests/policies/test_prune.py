"""Which units go, and how far a ratio may go in a round."""

from __future__ import annotations

import pytest
import torch

from cutlayer.errors import ConfigError
from cutlayer.policies.prune import check_target, most_important, reachable
from cutlayer.types import Kept

IMPORTANCE = {
    "0.heads": torch.tensor([0.1, 0.4, 0.3]),
    "0.channels": torch.tensor([5.0, 1.0, 4.0, 2.0]),
    "1.heads": torch.tensor([0.2, 0.2, 0.1]),
    "1.channels": torch.tensor([0.0, 0.0, 0.0, 7.0]),
}
WHOLE = Kept(((0, 1, 2),) * 2, ((0, 1, 2, 3),) * 2)


def test_the_least_important_of_each_block_go() -> None:
    """The other block's numbers change nothing; of equals the earlier one stays."""
    assert most_important(IMPORTANCE, WHOLE, (2, 2)) == Kept(((1, 2), (0, 1)), ((0, 2), (0, 3)))
    assert most_important(IMPORTANCE, WHOLE, (1, 3)) == Kept(((1,), (0,)), ((0, 2, 3), (0, 1, 3)))


def test_what_is_gone_stays_gone() -> None:
    kept = Kept(((0, 2), (1, 2)), ((1, 3), (0, 1, 2)))
    assert most_important(IMPORTANCE, kept, (1, 2)) == Kept(((2,), (1,)), ((1, 3), (0, 1)))
    assert most_important(IMPORTANCE, kept, (3, 4)) == kept


@pytest.mark.parametrize("target", [-0.1, 1.0, 3])
def test_a_target_is_a_share(target: float) -> None:
    with pytest.raises(ConfigError, match=r"method\.prune"):
        check_target(target)
    check_target(0)
    check_target(0.99)


@pytest.mark.parametrize(
    ("so_far", "round", "expected"),
    [
        (None, 0, (0.0, 0.0)),  # nothing scored yet
        (None, 2, (0.0, 0.0)),
        (None, 4, (0.4, 0.4)),  # nor here, but it must
        (0.0, 1, (0.0, 0.2)),
        (0.0, 4, (0.4, 0.4)),  # 0.2 is behind by two rounds: catch up
        (0.3, 2, (0.3, 0.5)),  # never back
        (0.3, 4, (0.4, 0.5)),
        (0.6, 3, (0.6, 0.6)),  # there already
        (0.45, 5, (0.6, 0.6)),  # the last round
    ],
)
def test_what_a_round_may_reach(so_far: float | None, round: int, expected: tuple[float, float]) -> None:
    assert reachable(0.6, so_far, 0.2, round, 6) == pytest.approx(expected)


def test_the_target_is_reached_at_any_choice() -> None:
    for choose in (min, max):
        so_far = None
        for round in range(7):
            lowest, highest = reachable(0.5, so_far, 0.1, round, 7)
            assert (so_far or 0.0) <= lowest <= highest <= 0.5
            assert highest <= (so_far or 0.0) + 0.1 + 1e-12
            so_far = choose(lowest, highest)
        assert so_far == 0.5
