"""The method table: what is in it, and which options a person may give."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.state import State


def message(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "expected" in text
    assert "got" in text
    return text


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_method_builds_with_its_defaults(name: str) -> None:
    row = TABLE[name]
    assert isinstance(build_method(name, {}, seed=0), Method)
    assert isinstance(build_method(name, row.options, seed=0), Method), "the defaults are values that may be given"
    assert row.summary
    assert row.paper.startswith("arXiv ") or name in ("centralized", "local_only"), "bounds are nobody's paper"
    assert row.evidence
    assert row.build.__name__ == name
    assert "\n" not in row.summary


@pytest.mark.parametrize("name", sorted(TABLE))
def test_options_are_keywords_and_the_seed_is_none(name: str) -> None:
    parameters = inspect.signature(TABLE[name].build).parameters
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())
    assert TABLE[name].options.keys() == parameters.keys() - {"seed"}
    assert all(default is not inspect.Parameter.empty for default in TABLE[name].options.values())


def test_each_build_is_a_method_of_its_own() -> None:
    """An order that counts its picks belongs to one run."""
    one, other = (build_method("memsfl", {"order": "random"}, seed=3) for _ in range(2))
    assert one.round is not other.round
    assert one.round.state() == State({"seed": 3, "num_picks": 0})


def test_an_option_reaches_the_method() -> None:
    random = build_method("memsfl", {"order": "random"}, seed=5).round.state().facts
    assert random["seed"] == 5
    assert "seed" not in build_method("memsfl", {"order": "fifo"}, seed=5).round.state().facts


def test_a_method_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as error:
        build_method("memslf", {}, seed=0)
    assert f"method.name: expected one of {', '.join(TABLE)}, got 'memslf'" in message(error)


@pytest.mark.parametrize(("name", "option"), [("memsfl", "ordre"), ("vanilla", "order"), ("memsfl", "seed")])
def test_an_option_that_the_method_has_not(name: str, option: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_method(name, {option: 1}, seed=0)
    text = message(error)
    assert f"method.{option}: expected an option of {name} ({', '.join(TABLE[name].options)})" in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cut", "two"),
        ("cut", 1.5),
        ("cut", True),
        ("order", 3),
        ("order", None),
        ("weighted", "yes"),
        ("weighted", 1),
        ("least", None),
        ("cut", [1]),
    ],
)
def test_a_value_of_another_kind(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        build_method("memsfl", {option: value}, seed=0)
    text = message(error)
    assert text.startswith(f"method.{option}: expected ")
    assert f"got {value!r}" in text


@pytest.mark.parametrize(
    ("option", "value"),
    [("cut", None), ("cut", 2), ("order", "ratio"), ("weighted", False), ("momentum", 0), ("momentum", 0.5)],
)
def test_a_value_of_the_right_kind(option: str, value: Any) -> None:
    """A whole number serves where a number is asked."""
    assert isinstance(build_method("memsfl", {option: value}, seed=0), Method)


def test_an_order_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as error:
        build_method("memsfl", {"order": "lifo"}, seed=0)
    assert "'lifo'" in message(error)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1])
def test_a_momentum_that_would_grow_for_ever(momentum: float) -> None:
    with pytest.raises(ConfigError) as error:
        build_method("memsfl", {"momentum": momentum}, seed=0)
    assert f"method.momentum: expected at least 0 and below 1, got {momentum}" in message(error)
