import pytest

from cutlayer.report.round_row import round_row
from cutlayer.report.scalars import scalars_of, settings_of, step_of
from cutlayer.types import StepRecord


def record(device: str, *, loss: float) -> StepRecord:
    return StepRecord(4, device, 2, 8, 8, loss, 1.0, 0.5, 0.25, bytes_up=100, bytes_down=10)


def test_every_number_of_a_round_has_a_group() -> None:
    row = round_row(
        [record("a", loss=2.0), record("b", loss=4.0)],
        round=4,
        virtual_seconds=20.0,
        wall_seconds=1.5,
        server_memory_bytes=1000,
        validation={"loss": 0.5, "accuracy": 0.75},
        held_out={"metrics": {"loss": 0.6}, "samples": 7, "devices": {"a": {"loss": 9.0}}, "seconds": 0.1},
    )
    scalars = scalars_of(row)
    assert list(scalars) == sorted(scalars)
    assert scalars == {
        "train/loss": 3.0,
        "train/samples": row["samples"],
        "train/weight": row["weight"],
        "fleet/devices": 2,
        "fleet/late": 0,
        "fleet/bytes_up": row["bytes_up"],
        "fleet/bytes_down": row["bytes_down"],
        "fleet/server_memory_bytes": 1000,
        "time/virtual_seconds": 20.0,
        "time/wall_seconds": 1.5,
        "time/held_out_seconds": 0.1,
        "validation/loss": 0.5,
        "validation/accuracy": 0.75,
        "validation/held_out_loss": 0.6,
        "validation/held_out_samples": 7,
    }
    assert step_of(row) == 5


def test_what_is_no_number_has_no_tag() -> None:
    assert scalars_of({"round": 0, "loss": None, "done": True, "validation": {}, "held_out": {}}) == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("builtin:reviews", "builtin:reviews"),
        ("/somebody/data/reviews", "reviews"),
        ("~/data/reviews", "reviews"),
        ("C:\\data\\reviews", "reviews"),
        ("/somebody/mine.py:mine", "mine.py:mine"),
        ("somebody/reviews", "somebody/reviews"),  # of the hub
    ],
)
def test_settings_have_no_paths(given: str, told: str) -> None:
    assert settings_of({"data": {"path": given}, "out": given}) == {"data.path": told, "out": told}


def test_what_says_nothing_is_no_setting() -> None:
    config = {"train": {"seed": 0, "samples": [], "stragglers": None, "answer_pattern": "", "overlap": False}}
    assert settings_of(config) == {"train.seed": 0, "train.overlap": False}


def test_a_fleet_is_told_as_its_size() -> None:
    assert settings_of({"fleet": {"devices": [{}, {}]}}) == {"fleet": "2 devices"}
    assert settings_of({"fleet": "memsfl-six"}) == {"fleet": "memsfl-six"}
