"""An entry of a comparison: a method with its options, as one word of the command line, `memsfl:order=fifo,cut=2`.

Somebody's own method has a colon in its name, and options behind another: `./mine.py:mine:cut=2`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cutlayer.errors import ConfigError
from cutlayer.methods.table import TABLE
from cutlayer.reading import yaml_value


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the comparison.

    Attributes:
      label: as it was typed; how tables and charts call it.
      method: its name in a config.
      options: those that its word gives.
    """

    label: str
    method: str
    options: dict[str, Any]

    @property
    def slug(self) -> str:
        """The label as a file name, which is not hidden."""
        return re.sub(r"[^A-Za-z0-9._=,-]+", "-", self.label).lstrip(".-") or "-"


def parse_entries(words: Sequence[str]) -> tuple[Entry, ...]:
    """Reads the words, in their order; the method table has yet to be asked.

    Raises:
      ConfigError: A word is not METHOD or METHOD:KEY=VALUE,..., or two are the same.
    """
    entries = tuple(parse_entry(word) for word in words)
    slugs = [entry.slug for entry in entries]
    for entry in entries:
        if slugs.count(entry.slug) > 1:
            raise ConfigError(f"compare: expected different methods, got {entry.label} twice. Leave one out.")
    return entries


def parse_entry(word: str) -> Entry:
    """Reads one word; values are read as YAML, as -o reads them.

    Example:
      >>> parse_entry("memsfl:order=fifo,cut=2").options
      {'order': 'fifo', 'cut': 2}
      >>> parse_entry("./mine.py:mine:cut=2").method
      './mine.py:mine'
    """
    method, colon, rest = _split(word)
    options: dict[str, Any] = {}
    for pair in rest.split(",") if colon else ():
        key, equals, text = pair.partition("=")
        if not key or not equals or key in options:
            raise ConfigError(
                f"compare {word}: expected METHOD:KEY=VALUE,KEY=VALUE with each key once, got {pair!r}. "
                "Write for example memsfl:order=fifo."
            )
        options[key] = yaml_value(text, f"compare {word}")
    return Entry(word, method, options)


def _split(word: str) -> tuple[str, str, str]:
    """Method, colon and options. A colon belongs to the method where a function stands behind it (`found`)."""
    first, colon, rest = word.partition(":")
    function, second, options = rest.partition(":")
    if first not in TABLE and function.isidentifier():
        return f"{first}:{function}", second, options
    return first, colon, rest
