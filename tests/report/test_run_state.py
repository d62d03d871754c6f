import pytest

from cutlayer.report.run_state import RunState
from cutlayer.types import Event


def state(num_rounds: int = 4, first_round: int = 0) -> RunState:
    return RunState(num_rounds, first_round, ("a", "b"), 10, started=100.0)


def row(round: int, **changes: object) -> dict[str, object]:
    return {"round": round, "loss": 1.0, "samples": 50, "virtual_seconds": 9.0, "validation": {}} | changes


def test_rounds_elapsed_counts_the_steps_of_this_round_only() -> None:
    run = state()
    run.saw(Event("a", "forward", 0, 1, 0, 9))
    run.saw(Event("a", "upload", 1, 2, 0, None))  # the update, which is no step, forgets none
    assert run.rounds_elapsed() == 0.5
    run.saw(Event("server", "forward", 0, 1, 0, 9))
    assert run.rounds_elapsed() == 0.5
    run.finished(row(0), now=110.0)
    assert run.rounds_elapsed() == 1.0
    run.saw(Event("b", "forward", 0, 1, 1, 4))
    assert run.rounds_elapsed() == 1.25


def test_the_time_left_is_at_the_pace_so_far() -> None:
    run = state(num_rounds=12, first_round=10)
    assert run.seconds_left(now=105.0) is None
    run.saw(Event("a", "forward", 0, 1, 10, 9))
    assert run.seconds_left(now=110.0) == pytest.approx(30.0)
    run.finished(row(10), now=120.0)
    run.finished(row(11), now=140.0)
    assert run.seconds_left(now=150.0) == 0.0


def test_samples_per_second_is_over_the_whole_process() -> None:
    run = state()
    run.finished(row(0), now=100.0)
    assert run.samples_per_second is None
    run.finished(row(1), now=110.0)
    assert run.samples_per_second == 10.0


def test_a_round_without_validation_keeps_the_last_one() -> None:
    run = state()
    run.finished(row(0, validation={"accuracy": 0.5}), now=101.0)
    run.finished(row(1), now=102.0)
    assert run.validation == {"accuracy": 0.5}


def test_virtual_time_is_the_latest_moment_reached() -> None:
    run = state()
    assert run.virtual_seconds() == 0.0
    run.saw(Event("a", "forward", 0, 5.0, 0, 0))
    assert run.virtual_seconds() == 5.0
    run.finished(row(0), now=101.0)
    assert run.virtual_seconds() == 9.0
    run.saw(Event("server", "forward", 9.0, 11.0, 1, 0))
    assert run.virtual_seconds() == 11.0
