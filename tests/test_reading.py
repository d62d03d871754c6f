"""Doors: what the system says of a path, and what is wrong with YAML, is one line and no traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import ConfigError, DataError, ModelError
from cutlayer.reading import DEEPEST, local, parse_yaml, read_yaml, reading, yaml_text, yaml_value

LONG = "x" * 300


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EACCES, errno.EISDIR, errno.EIO, errno.ENOTDIR])
def test_what_the_system_says_is_one_line(code: int) -> None:
    with pytest.raises(DataError) as caught, reading("data x", "a file that can be read", DataError):
        raise OSError(code, os.strerror(code), f"/a/{LONG}")
    said = str(caught.value)
    assert said.startswith("data x: expected a file that can be read, got /a/xxx")
    assert f"...{LONG[:37]}: {os.strerror(code)}. Check the path" in said
    assert len(said) < 250


def test_what_is_told_already_passes() -> None:
    with pytest.raises(ModelError, match="mine"), reading("data x", "a file", DataError):
        raise ModelError("mine")


def test_a_name_that_begins_like_a_home_folder_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/mine")
    assert local("~/a.csv") == Path("/mine/a.csv")
    assert local("~$train.csv") == Path("~$train.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", ":3: expected YAML, got the key 'a' a second time (first in line 1). Correct that line."),
        ("train:\n  lr: 1\n  lr: 2\n", ":3: expected YAML, got the key 'lr' a second time (first in line 2)."),
        ("devices: [{name: a, name: b}]", ":1: expected YAML, got the key 'name' a second time"),
        ("[" * (DEEPEST + 1), f"expected YAML, got more than {DEEPEST} levels"),
        ("[" * 100_000, f"expected YAML, got more than {DEEPEST} levels"),
        ("a: [", ":1: expected YAML, got expected the node content"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        (b"\xff\xfe\x00", "expected YAML, got bytes that are not text"),
        ("a: 1" + "0" * 5000, ":1: expected YAML, got what is no int that can be read"),
        ("a: 1\nb: !!int x", ":2: expected YAML, got what is no int that can be read"),
        ("a: !!timestamp x", ":1: expected YAML, got what is no timestamp that can be read"),
        ("a: !!bool x", ":1: expected YAML, got what is no bool that can be read"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, "run.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"mine: expected a text file, got .*none: No such file or directory"):
        read_yaml(tmp_path / "none", "mine", ModelError)


def test_a_mapping_may_say_anew_what_it_takes_over() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("number", ["5e-1", "1e0", "-2E3", "1.5e+2", ".5e1", "2e-4"])
def test_a_number_with_an_exponent(number: str) -> None:
    assert parse_yaml(number) == yaml_value(number, "-o x") == float(number)


@pytest.mark.parametrize("text", ["1:30", "12:30:45", "010", "-07", "1:30.5", "2026-11-30", "2026-13-45"])
def test_what_only_looks_like_a_number_or_a_day_is_text(text: str) -> None:
    """It would be 90, 45045, 8, -7, 90.5 and days, one of which there is not."""
    assert parse_yaml(text) == text


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("-12", -12), ("1_000", 1000), ("0x1F", 31), ("0.5", 0.5), ("3.", 3.0), (".5", 0.5)]
)
def test_numbers(text: str, number: float) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (number, type(number))
    assert parse_yaml("[.inf, -.inf, 010.5]") == [float("inf"), float("-inf"), 10.5]


PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("0123456789eE.+-_ axn:#'\"~T"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1e0.", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_what_is_written_is_read_as_the_same(content: Any) -> None:
    assert parse_yaml(yaml_text(content)) == content


def test_a_value_that_is_not_yaml() -> None:
    with pytest.raises(ConfigError, match=r"-o a=\[: expected a YAML value, got '\['\. Quote it\."):
        yaml_value("[", "-o a=[")


def test_yaml_elsewhere_reads_what_is_written_here() -> None:
    assert yaml.safe_load(yaml_text({"name": "1e0", "lr": 1e-5})) == {"name": "1e0", "lr": 1e-5}
