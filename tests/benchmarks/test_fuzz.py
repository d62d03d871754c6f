"""A short campaign: nothing but messages, malformed ones and refusals; the same inputs by the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import fuzz
from cutlayer.errors import Refused

SHORT = 2000


@pytest.fixture(scope="module")
def scenes() -> list[fuzz.Scene]:
    return fuzz.make_scenes()


def test_honest_frames_pass(scenes: list[fuzz.Scene]) -> None:
    outcomes = []
    for scene in scenes:
        try:
            outcomes.append(type(fuzz.received(scene, scene.frame)).__name__)
        except Refused as error:
            outcomes.append(error.reason)
    assert set(outcomes) == {"Activations", "Recall", "Facts", "Measured", "Update", "wrong-kind"}
    assert outcomes.count("wrong-kind") == 2  # what only a server says, in two worlds


def test_changed_frames_do_no_harm(scenes: list[fuzz.Scene]) -> None:
    found = fuzz.fuzz(scenes, SHORT, seed=1)
    assert sum(found.outcomes.values()) == SHORT
    reasons = {"malformed", "passed", "wrong-kind", "wrong-run", "wrong-device", "wrong-step", "not-finite"}
    assert reasons <= found.outcomes.keys()
    assert any(outcome.startswith("passed, ") for outcome in found.outcomes)


def test_an_input_can_be_made_again(scenes: list[fuzz.Scene]) -> None:
    whole, part = fuzz.fuzz(scenes, 200, seed=3), fuzz.fuzz(scenes, 100, seed=3, first=100)
    first = fuzz.fuzz(scenes, 100, seed=3)
    plain = [
        {("passed" if outcome.startswith("passed") else outcome): 0 for outcome in found.outcomes}
        for found in (whole, part, first)
    ]
    assert plain[0].keys() == plain[1].keys() | plain[2].keys()


def test_something_else_ends_the_campaign(scenes: list[fuzz.Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_arguments: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr(fuzz, "received", crash)
    with pytest.raises(AssertionError, match="input 7 of seed 5: IndexError"):
        fuzz.fuzz(scenes, 3, seed=5, first=7)


@pytest.mark.parametrize("change", [*fuzz.CRUDE, *fuzz.CHANGES[-3:]])
def test_changes_take_any_bytes(change: fuzz.Change, scenes: list[fuzz.Scene]) -> None:
    rng = random.Random(0)
    for frame in (b"", b"x", bytes(12), scenes[0].frame[:13], scenes[0].frame):
        for _ in range(20):
            assert isinstance(change(frame, rng, scenes), bytes)


def test_it_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fuzz.json"
    fuzz.main(["--inputs", "50", "--seed", "2", "--json", str(path)])
    assert "50 changed frames" in capsys.readouterr().out
    assert sum(json.loads(path.read_text())["rows"]["outcomes"].values()) == 50
