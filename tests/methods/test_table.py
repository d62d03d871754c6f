"""The method table: what is in it, and which options a person may give."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method, found, offered
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


# ------------------------------------------------------------------ methods of others

MINE = '''\
"""Mine: everyone, cut at one block.

Evidence: made up.
"""
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.select import everyone
from cutlayer.rounds.relay import relay


def mine(*, cut: int = 1, seed: int = 0) -> Method:
    """Builds it.

    Args:
      cut: Blocks on every device.
      seed: Of nothing.
    """
    return Method((everyone(), cut_at(cut)), relay(), mean_per_block())
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


@pytest.fixture
def package(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers the method as `mine`, and as names of which nothing can be built."""
    told = file.parent / "a_package-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1\n")
    (told / "entry_points.txt").write_text(
        "[cutlayer.methods]\nmine = mine:mine\nmemsfl = mine:mine\ngone = no_such_module:mine\nhollow = mine:other\n"
    )
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return file


def test_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a file is the same from any folder."""
    monkeypatch.chdir(file.parent)
    row = found("./mine.py:mine")
    assert (row.name, row.ours, row.source.at) == (f"{file}:mine", False, str(file))
    assert found(row.name) == row
    assert row.options == {"cut": 1}
    assert (row.summary, row.evidence) == ("everyone, cut at one block", "made up")
    assert isinstance(build_method("mine.py:mine", {"cut": 2}, seed=0), Method)


def test_a_module_and_what_a_package_offers(package: Path) -> None:
    for name in ("mine:mine", "mine"):
        row = found(name)
        assert (row.name, row.ours, row.source.at, row.source.path) == (name, False, "mine", package)
        assert isinstance(build_method(name, {"cut": 2}, seed=0), Method)


def test_the_names_of_the_table_come_first(package: Path) -> None:
    assert found("memsfl") is TABLE["memsfl"]
    assert offered().keys() == {"mine", "gone", "hollow"}


def test_what_a_package_offers_and_is_not_there(package: Path) -> None:
    with pytest.raises(ConfigError, match="no_such_module: expected a module on Python's path, got none"):
        build_method("gone", {}, seed=0)
    with pytest.raises(ConfigError, match="method hollow: expected a function other in the file, got mine"):
        build_method("hollow", {}, seed=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memslf", r"got 'memslf'\. Did you mean 'memsfl'\?"),
        ("minee", r"got 'minee'\. Did you mean 'mine'\?"),
        ("nothing_like_it", r"See `cutlayer methods`, or name a file: \./mine\.py:mine\."),
        ("./mine.py", r"got '\./mine\.py'\. Name a function in it: FILE\.py:FUNCTION\."),
        ("./mine.py:", "expected one of "),
        ("mine.py:1", "expected one of "),
        ("a-b:mine", "expected one of "),
        (":mine", "expected one of "),
        ("", "expected one of "),
    ],
)
def test_what_names_no_method(name: str, said: str, package: Path) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        found(name)
    assert message(error).startswith("method.name: expected one of ")


def test_an_option_is_guessed() -> None:
    with pytest.raises(ConfigError, match=r"got 'ordre'\. Did you mean 'order'\?"):
        build_method("memsfl", {"ordre": "fifo"}, seed=0)


def test_a_text_that_is_another(file: Path) -> None:
    name, digest = f"{file}:mine", found(f"{file}:mine").source.sha256
    assert isinstance(build_method(name, {}, 0, digest), Method)
    file.write_text(MINE + "\n")
    with pytest.raises(ConfigError) as error:
        build_method(name, {}, 0, digest)
    text = message(error)
    assert f"expected the text with which this run began (SHA-256 {digest[:12]}...)" in text
    assert f"{file} has changed. Put it back, or start a new run." in text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 3", r"expected a Method from mine\(\.\.\.\), got int\. Return cutlayer\.Method"),
        ("pass", r"expected a Method from mine\(\.\.\.\), got NoneType\."),
        ("return 1 / 0", r"got ZeroDivisionError: division by zero \(line 2\)\. Correct it\."),
        ("return cut.gone", r"got AttributeError: .* \(line 2\)\. Correct it\."),
    ],
)
def test_a_builder_that_makes_no_method(body: str, said: str, file: Path) -> None:
    file.write_text(f"def mine(*, cut: int = 1):\n    {body}\n")
    with pytest.raises(ConfigError, match=said) as error:
        build_method(f"{file}:mine", {}, seed=0)
    assert message(error).startswith(f"method {file}:mine: ")


def test_what_a_builder_refuses_is_said_as_it_says_it(file: Path) -> None:
    file.write_text(
        "from cutlayer.errors import ConfigError\n"
        "def mine(*, cut: int = 1):\n"
        "    raise ConfigError('method.cut: expected 2, got 1. Change it.')\n"
    )
    with pytest.raises(ConfigError, match=r"^method\.cut: expected 2, got 1\. Change it\.$"):
        build_method(f"{file}:mine", {}, seed=0)
