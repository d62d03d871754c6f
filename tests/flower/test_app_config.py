"""Values that Flower hands over: read into the same settings as the command line's, and none of them is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cutlayer.device.limits import Limits
from cutlayer.errors import ConfigError
from cutlayer.flower.app_config import LIMITS, read_joining, read_serving
from cutlayer.joining import Joining

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower-app" / "pyproject.toml"


def defaults() -> dict[str, Any]:
    """The settings of the example app."""
    import tomllib

    config: dict[str, Any] = tomllib.loads(EXAMPLE.read_text())["tool"]["flwr"]["app"]["config"]
    return config


def test_the_example_says_a_run_with_every_default() -> None:
    serving = read_serving(defaults())
    assert (serving.listen, serving.host, serving.devices, serving.resume) == ("127.0.0.1:0", "127.0.0.1", 1, False)
    assert serving.config.method.name == "memsfl"


def test_a_run_file_and_what_lays_itself_over_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {rounds: 7, lr: 0.5}\nout: here\n")
    run = {"run": str(tmp_path / "run.yaml"), "set": "train.lr=0.25 method.name=fedlora", "devices": 3}
    serving = read_serving(defaults() | run)
    assert serving.config.train.rounds == 7
    assert serving.config.train.lr == 0.25
    assert serving.config.method.name == "fedlora"
    assert serving.config.out == "here"
    assert serving.devices == 3
    assert read_serving(defaults() | run | {"out": "there"}).config.out == "there"


def test_where_devices_come_to() -> None:
    assert read_serving(defaults() | {"listen": "0.0.0.0:7070", "host": "a.org"}).host == "a.org"
    assert read_serving({"listen": "10.0.0.1:7070"}).host == "10.0.0.1"


def test_a_run_that_goes_on_is_the_one_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {rounds: 9}\n")
    serving = read_serving(defaults() | {"resume": True, "out": str(tmp_path)})
    assert serving.resume
    assert serving.config.train.rounds == 9
    assert serving.config.out == str(tmp_path)
    for more in ({"out": ""}, {"run": "run.yaml"}, {"set": "train.lr=1"}):
        with pytest.raises(ConfigError, match="resume"):
            read_serving(defaults() | {"resume": True, "out": str(tmp_path)} | more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": 0.1}, "expected run, set, .* got lr"),
        ({"devices": 0}, "devices: expected a number of at least 1, got 0"),
        ({"devices": True}, "devices: expected a number"),
        ({"devices": "2"}, "devices: expected a number"),
        ({"resume": "yes"}, "resume: expected true or false"),
        ({"listen": "7070"}, "listen: expected HOST:PORT"),
        ({"listen": "host:"}, "listen: expected HOST:PORT"),
        ({"out": 7}, "out: expected a text, got 7"),
        ({"set": "train.lr"}, "expected KEY=VALUE"),
    ],
)
def test_what_a_run_config_may_not_say(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_serving(given)


def test_a_node_is_a_device_as_join_knows_it() -> None:
    assert read_joining({"name": "pi", "data": "my.jsonl"}) == Joining("pi", "my.jsonl", "", Path("cutlayer-pi"))
    whole = {"name": "pi", "data": "d", "model": "server", "folder": "f", "hardware": "cuda:1", "max-blocks": 2}
    assert read_joining(whole) == Joining("pi", "d", "server", Path("f"), "cuda:1", 2)


def test_what_the_owner_of_a_node_allows_is_what_join_knows() -> None:
    said = {
        "task": "classification",
        "text": "review, title",
        "label": "stars",
        "least-blocks": 3,
        "never": "labels,counts",
        "only": "fedlora",
        "rounds": 5,
        "until": "2026-12-24T18:00+00:00",
    }
    assert set(said) == set(LIMITS)
    assert read_joining({"name": "pi", "data": "d", **said}).limits == Limits(
        task="classification",
        text=("review", "title"),
        label=("stars",),
        least_blocks=3,
        never=frozenset({"labels", "counts"}),
        only=("fedlora",),
        rounds=5,
        until=1798135200.0,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "pi", "data": "d", "never": "label"}, "node config: never: expected some of labels"),
        ({"name": "pi", "data": "d", "never": True}, "never: expected a text"),
        ({"name": "pi", "data": "d", "least-blocks": 1.5}, "least-blocks: expected a whole number"),
        ({"name": "pi", "data": "d", "rounds": 0}, "rounds: expected a whole number of at least 1"),
        ({}, "expected the device's name and data, got nothing"),
        ({"name": "pi"}, "expected the device's name and data, got name"),
        ({"name": "pi", "data": "d", "partition-id": 0}, "got partition-id"),
        ({"name": "pi", "data": 3}, "data: expected a text"),
        ({"name": "pi", "data": "d", "max-blocks": -1}, "max-blocks: expected a number of at least 0"),
        ({"name": "pi", "data": "d", "max-blocks": "all"}, "max-blocks: expected a number of at least 0"),
    ],
)
def test_what_a_node_config_may_not_say(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_joining(given)
