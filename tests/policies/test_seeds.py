"""Which seeds there are, and which is tried."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from cutlayer.errors import ConfigError
from cutlayer.policies.seeds import CLIP, MOST, SlopeHistory, candidate_seeds, draw, uniform

INDICES = torch.tensor([0, 2, 2, -1, 3], dtype=torch.int32)
SCALARS = torch.tensor([1.0, -6.0, 3.0, 500.0, 5000.0])


def seen() -> SlopeHistory:
    history = SlopeHistory(4)
    history.observe(INDICES, SCALARS)
    return history


def test_candidate_seeds_are_different_and_in_range() -> None:
    seeds = candidate_seeds(4096, seed=1)
    assert len(set(seeds)) == 4096
    assert all(1 <= seed <= MOST for seed in seeds)
    assert sum(seeds) / 4096 == pytest.approx(MOST / 2, rel=0.03)


def test_candidate_seeds_go_by_the_runs_seed() -> None:
    assert candidate_seeds(5, seed=1) == candidate_seeds(9, seed=1)[:5]
    assert set(candidate_seeds(5, seed=1)).isdisjoint(candidate_seeds(5, seed=2))


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.seeds: expected at least 1"):
        candidate_seeds(0, seed=1)


def test_probabilities_are_those_of_the_authors_code() -> None:
    """Histories [0, 1], [0], [0, -6, 3], [0, 5000]: the first 0 stays in the mean, 5000 counts as 1000."""
    amplitudes = [0.5, 0.0, 3.0, CLIP / 2]
    odds = [math.exp((a - 0.0) / (CLIP / 2)) for a in amplitudes]
    assert seen().probabilities().tolist() == pytest.approx([x / sum(odds) for x in odds])


def test_the_likeliest_seed_is_e_times_as_likely_as_the_least() -> None:
    probabilities = seen().probabilities()
    assert float(probabilities.max() / probabilities.min()) == pytest.approx(math.e)
    assert float(probabilities.sum()) == pytest.approx(1)


def test_a_history_without_steps_leaves_all_alike() -> None:
    assert torch.equal(SlopeHistory(4).probabilities(), uniform(4))
    history = SlopeHistory(2)
    history.observe(torch.tensor([-1, -1]), torch.tensor([3.0, 4.0]))
    assert torch.equal(history.probabilities(), uniform(2))


def test_a_history_goes_on_from_its_state() -> None:
    history, other = seen(), SlopeHistory(4)
    other.load(history.state())
    for one in (history, other):
        one.observe(torch.tensor([1]), torch.tensor([7.0]))
    assert torch.equal(history.probabilities(), other.probabilities())
    assert not torch.equal(history.probabilities(), seen().probabilities())


def test_draws_are_as_likely_as_they_are_said_to_be() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    counts = Counter(draw(probabilities, 7, "device-0", 0, step) for step in range(4000))
    assert counts[1] == 0
    for index in (0, 2, 3):
        expected = 4000 * float(probabilities[index])
        assert abs(counts[index] - expected) < 4 * expected**0.5


def test_draws_go_by_their_key() -> None:
    probabilities = uniform(4096)
    assert draw(probabilities, 1, "a", 2, 3) == draw(probabilities, 1, "a", 2, 3)
    assert (
        len({draw(probabilities, *key) for key in ((1, "a", 2, 3), (2, "a", 2, 3), (1, "b", 2, 3), (1, "a", 2, 4))})
        == 4
    )


def test_probabilities_need_not_add_up_to_one() -> None:
    """As fp32 they do not."""
    probabilities = torch.tensor([0.2, 0.2])
    assert {draw(probabilities, step) for step in range(50)} == {0, 1}
