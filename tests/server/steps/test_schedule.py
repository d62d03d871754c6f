"""The order of a pipeline's pieces: everything once, nothing before what it needs, and what decomposing gains."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.server.steps.schedule import Piece, Slot, schedule

sizes = {"stages": st.integers(1, 4), "micro_batches": st.integers(1, 6), "decomposed": st.booleans()}


def makespan(slots: list[Slot]) -> float:
    return max(slot.end_seconds for slot in slots)


@given(**sizes)
def test_every_piece_once_and_after_what_it_needs(stages: int, micro_batches: int, decomposed: bool) -> None:
    slots = schedule(stages, micro_batches, decomposed=decomposed)
    place = {(slot.stage, slot.what, slot.micro_batch): number for number, slot in enumerate(slots)}
    halves: tuple[Piece, ...] = ("input", "weight") if decomposed else ("backward",)
    assert Counter(slot.what for slot in slots)["forward"] == stages * micro_batches
    assert len(place) == len(slots)
    for stage in range(stages):
        mine = halves if stage or not decomposed else ("weight",)
        for micro_batch in range(micro_batches):
            order = [place[stage, what, micro_batch] for what in ("forward", *mine)]
            assert order == sorted(order)
            if stage:
                assert place[stage - 1, "forward", micro_batch] < place[stage, "forward", micro_batch]
            if stage + 1 < stages:
                above: Piece = "input" if decomposed else "backward"
                assert place[stage + 1, above, micro_batch] < place[stage, mine[0], micro_batch]
    assert len(slots) == stages * micro_batches * (1 + len(halves)) - (micro_batches if decomposed else 0)


@given(**sizes)
def test_a_stage_does_one_thing_at_a_time(stages: int, micro_batches: int, decomposed: bool) -> None:
    slots = schedule(stages, micro_batches, decomposed=decomposed, seconds=lambda stage, what: 1 + stage + len(what))
    for one, other in combinations(slots, 2):
        if one.stage == other.stage:
            assert one.end_seconds <= other.start_seconds
    assert [slot.start_seconds for slot in slots] == sorted(slot.start_seconds for slot in slots)


@given(**sizes)
def test_the_activations_that_a_stage_holds_are_bounded(stages: int, micro_batches: int, decomposed: bool) -> None:
    held = [0] * stages
    for slot in schedule(stages, micro_batches, decomposed=decomposed):
        last: Piece = "backward" if not decomposed else "input" if slot.stage else "weight"
        held[slot.stage] += (slot.what == "forward") - (slot.what == last)
        assert held[slot.stage] <= stages - slot.stage


def test_two_stages_by_hand() -> None:
    """Equal pieces, one micro-batch: the upper stage's weights are done while the lower stage works."""
    slots = schedule(2, 1, decomposed=True)
    assert [(slot.stage, slot.what, slot.start_seconds) for slot in slots] == [
        (0, "forward", 0.0),
        (1, "forward", 1.0),
        (1, "input", 2.0),
        (0, "weight", 3.0),
        (1, "weight", 3.0),
    ]


def test_what_others_wait_for_goes_first() -> None:
    """With an input gradient given, the upper stage could do its weights or go on forward: it goes on."""
    order = [(slot.stage, slot.what, slot.micro_batch) for slot in schedule(2, 2, decomposed=True)]
    mine = [piece[1:] for piece in order if piece[0] == 1]
    assert mine == [("forward", 0), ("input", 0), ("forward", 1), ("input", 1), ("weight", 0), ("weight", 1)]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_decomposing_shortens_a_pipeline_of_machines(stages: int) -> None:
    """If half of a backward pass is the input's; a single stage has nothing that waits."""

    def seconds(_stage: int, what: Piece) -> float:
        return 2.0 if what == "backward" else 1.0

    def lowest(stage: int, what: Piece) -> float:
        return 2.0 if stage == 0 and what == "weight" else 1.0

    assert makespan(schedule(stages, 8, decomposed=True, seconds=lowest)) < makespan(
        schedule(stages, 8, decomposed=False, seconds=seconds)
    )
    assert makespan(schedule(1, 8, decomposed=True, seconds=lowest)) == makespan(
        schedule(1, 8, decomposed=False, seconds=seconds)
    )
