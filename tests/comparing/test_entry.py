"""Words of the command line that name a method."""

from __future__ import annotations

import pytest

from cutlayer.comparing.entry import Entry, parse_entries, parse_entry
from cutlayer.errors import ConfigError


def test_a_method_alone() -> None:
    assert parse_entry("memsfl") == Entry("memsfl", "memsfl", {})


def test_options_are_read_as_yaml() -> None:
    entry = parse_entry("memsfl:order=fifo,cut=null,weighted=false,momentum=0.5")
    assert entry.options == {"order": "fifo", "cut": None, "weighted": False, "momentum": 0.5}
    assert entry.label == "memsfl:order=fifo,cut=null,weighted=false,momentum=0.5"


def test_a_slug_is_a_file_name() -> None:
    assert parse_entry("memsfl:order=fifo,cut=2").slug == "memsfl-order=fifo,cut=2"
    assert parse_entry("memsfl:order='a/b *'").slug == "memsfl-order=-a-b-"


@pytest.mark.parametrize("word", ["memsfl:", "memsfl:order", "memsfl:=3", "memsfl:cut=1,", "memsfl:cut=1,cut=2"])
def test_what_is_no_option(word: str) -> None:
    with pytest.raises(ConfigError, match=r"expected METHOD:KEY=VALUE,KEY=VALUE with each key once, got "):
        parse_entry(word)


def test_a_value_that_is_not_yaml() -> None:
    with pytest.raises(ConfigError, match=r"expected a YAML value, got '\['\. Quote it\."):
        parse_entry("memsfl:cut=[")


def test_the_same_word_twice() -> None:
    with pytest.raises(ConfigError, match="expected different methods, got memsfl twice"):
        parse_entries(["memsfl", "vanilla", "memsfl"])
    assert [entry.method for entry in parse_entries(["memsfl", "memsfl:cut=1"])] == ["memsfl", "memsfl"]


@pytest.mark.parametrize(
    ("word", "method", "options", "slug"),
    [
        ("./mine.py:mine", "./mine.py:mine", {}, "mine.py-mine"),
        ("../a b/mine.py:mine:cut=2,order=a:b", "../a b/mine.py:mine", {"cut": 2, "order": "a:b"}, None),
        ("package.module:mine", "package.module:mine", {}, "package.module-mine"),
        ("package.module:mine:cut=2", "package.module:mine", {"cut": 2}, "package.module-mine-cut=2"),
        ("offered:cut=2", "offered", {"cut": 2}, "offered-cut=2"),
    ],
)
def test_a_method_of_others(word: str, method: str, options: dict[str, object], slug: str | None) -> None:
    entry = parse_entry(word)
    assert (entry.label, entry.method, entry.options) == (word, method, options)
    assert slug is None or entry.slug == slug


@pytest.mark.parametrize("word", ["./mine.py:mine:", "./mine.py:mine:cut", "package.module:mine:cut=1,"])
def test_what_is_no_option_of_a_method_of_others(word: str) -> None:
    with pytest.raises(ConfigError, match=r"expected METHOD:KEY=VALUE,KEY=VALUE with each key once, got "):
        parse_entry(word)
