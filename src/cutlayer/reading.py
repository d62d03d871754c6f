"""Doors through which is read what a person gave: paths and YAML. What the system raises there becomes one line.

A door is a `with reading(...)` around all that touches the disk for one thing that was given: whatever the system says
of a path (a name too long, no permission, a folder where a file was meant, a disk that fails) is the person's to mend,
so it is a `UserError` and no traceback.

The hub is a door too: its client tries a network that is not there again and again, for a minute, so it is asked first
whether there is one (`look_for_hub`).
"""

from __future__ import annotations

import os
import re
import socket
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from cutlayer.errors import ConfigError, UserError

TaskKind = Literal["classification", "causal-lm"]
"""The task that is learnt, as a person says it."""
HUB_SECONDS = 3.0
"""Seconds for a connection to the hub, and for its name to be looked up."""
DEEPEST = 50
"""Levels of a YAML file: more are no config, and would exhaust the stack."""
MERGED = "tag:yaml.org,2002:merge"
"""Marks `<<`, by which a mapping takes over what another says: its own keys may say it anew."""


@contextmanager
def reading(where: str, expected: str, error: type[UserError] = ConfigError) -> Iterator[None]:
    """A door: what the system raises inside is raised as one line.

    Args:
      where: Begins the line, such as `data ./reviews`.
      expected: What it should be, such as `files that can be read`.
      error: The class to raise.

    Raises:
      UserError: Of this class, for any `OSError`; what is a `UserError` already passes as it is.

    Example:
      >>> from cutlayer.errors import DataError
      >>> try:
      ...     with reading("data /none/x", "a file that can be read", DataError):
      ...         open("/none/x")
      ... except DataError as error:
      ...     print(error)
      data /none/x: expected a file that can be read, got No such file or directory. Check the path and its permissions.
    """
    try:
        yield
    except OSError as system:
        got = system.strerror or " ".join(str(system).split()) or type(system).__name__
        if isinstance(system.filename, str) and system.filename not in where:
            got = f"{_short(system.filename)}: {got}"
        raise error(f"{where}: expected {expected}, got {got}. Check the path and its permissions.") from system


def guess(word: object, known: Iterable[str]) -> str:
    """`Did you mean 'splitlora'?` where one of the known words is near; empty where none is.

    Capitals, hyphens and underscores do not count.

    Example:
      >>> guess("SplitLoRA", ["splitlora", "sl"]), guess("local-step", ["local_steps"]), guess("x", ["rounds"])
      ("Did you mean 'splitlora'?", "Did you mean 'local_steps'?", '')
    """
    plain = {one.casefold().replace("-", "_"): one for one in known}
    close = get_close_matches(str(word).casefold().replace("-", "_"), plain, n=1)
    return f"Did you mean {plain[close[0]]!r}?" if close else ""


@cache
def look_for_hub() -> None:
    """Tells the hub's client, once in a process, to do without a hub where none can be reached: what it has fetched
    before is there all the same, and of anything else it says at once that it is not.

    Behind a proxy, and where a person has said `HF_HUB_OFFLINE`, nothing is changed.
    """
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies() or address.hostname is None:
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    if reachable(address.hostname, port):
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later, and for other processes
    constants.HF_HUB_OFFLINE = True
    if (of_datasets := sys.modules.get("datasets.config")) is not None:
        of_datasets.HF_HUB_OFFLINE = of_datasets.HF_DATASETS_OFFLINE = True  # type: ignore[attr-defined]


def reachable(host: str, port: int, patience_seconds: float = HUB_SECONDS) -> bool:
    """Whether somebody takes a connection there.

    Args:
      host: Its name or address; the system may take long to look a name up, and is not waited for.
      port: Where.
      patience_seconds: For that, and as long again for the connection.
    """
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), patience_seconds).close()
        except OSError:
            found.append(False)
        else:
            found.append(True)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience_seconds * 4 / 3)
    return found == [True]


def counted(number: int, what: str) -> str:
    """`1 block`, `2 blocks`.

    Example:
      >>> counted(1, "block"), counted(2, "block"), counted(1200, "row")
      ('1 block', '2 blocks', '1,200 rows')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def check_hardware(name: str) -> None:
    """Looks at the form of what computes, before torch says whether it is there.

    Raises:
      ConfigError: It is neither `cpu` nor a GPU's name.
    """
    if not re.fullmatch(r"cpu|cuda(?::\d{1,3})?", name):
        raise ConfigError(f"hardware: expected cpu, cuda or cuda:N, got {name!r}. Change it.")


def local(path: str | Path) -> Path:
    """The path, with the home folder for `~`; a name that merely begins with it, as a lock file's may, is itself."""
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:  # no such user
        return given


def read_yaml(path: Any, where: str, error: type[UserError] = ConfigError) -> Any:
    """Reads a YAML file.

    Args:
      path: A `Path`, or a file inside a package.
      where: Begins the errors.
      error: The class to raise.

    Raises:
      UserError: Of this class: it cannot be read, is not YAML, or says a key twice; with the line.
    """
    with reading(where, "a text file", error):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as problem:
            raise error(f"{where}: expected YAML, got bytes that are not text. Save it as UTF-8.") from problem
    try:
        return parse_yaml(text)
    except yaml.YAMLError as problem:
        line = getattr(getattr(problem, "problem_mark", None), "line", None)
        place = where if line is None else f"{where}:{line + 1}"
        said = getattr(problem, "problem", None) or " ".join(str(problem).split())
        raise error(f"{place}: expected YAML, got {said}. Correct that line.") from problem


def parse_yaml(text: str) -> Any:
    """Reads YAML: the text of a file, or the value of a flag.

    Some things are as people mean them and not as YAML 1.1 has them: a key that stands twice is an error, where the
    first would be lost without a word; 5e-1 is a number; 1:30, 010 and 2026-11-30 are text, where they would be 90, 8
    and a day.

    Raises:
      yaml.YAMLError: It is not YAML, or says a key twice.

    Example:
      >>> parse_yaml("lr: 5e-5")
      {'lr': 5e-05}
      >>> parse_yaml("blocks: 4:8")
      {'blocks': '4:8'}
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def yaml_value(text: str, where: str) -> Any:
    """Reads the value of a flag as YAML.

    Args:
      text: The value as it was typed.
      where: Begins the error.

    Raises:
      ConfigError: It is not YAML.
    """
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: expected a YAML value, got {text!r}. Quote it.") from error


class _Loader(yaml.SafeLoader):
    """Safe, with numbers as JSON has them, and no key twice."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, OverflowError) as wrong:  # of a tag, or of too many digits
            kind = str(node.tag).rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"what is no {kind} that can be read", problem_mark=node.start_mark
            ) from wrong

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGED:
                continue
            if key.value in lines:
                problem = f"the key {key.value!r} a second time (first in line {lines[key.value]})"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads as the same again: a text that looks like a number in quotes."""


_NUMBERS = {  # as YAML 1.2 has them: neither base 60, nor base 8 by a leading 0
    "tag:yaml.org,2002:int": r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$",
    "tag:yaml.org,2002:float": r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, found) for tag, found in resolvers if tag not in {*_NUMBERS, "tag:yaml.org,2002:timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def yaml_text(content: Any) -> str:
    """The content as YAML, in its own order, which `parse_yaml` reads as the same again.

    Example:
      >>> parse_yaml(yaml_text({"name": "1e0", "lr": 1e-05}))
      {'name': '1e0', 'lr': 1e-05}
    """
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _short(path: str) -> str:
    return path if len(path) <= 80 else f"{path[:40]}...{path[-37:]}"
