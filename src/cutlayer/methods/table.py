"""The method table: a row per file beside this one. `cutlayer methods` prints it; every law runs on every row.

A row says what its file says of itself (`described.py`), so a method is added by adding its file. Others' methods are
found by what names them (`found`): `./mine.py:mine`, `package.module:mine`, or the name under which an installed
package offers one (its entry points in the group `cutlayer.methods`); the names of the table come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutlayer.errors import ConfigError, CutlayerError
from cutlayer.methods.described import Description, Option, described, kinds_of
from cutlayer.methods.source import Source, described_error, module_source
from cutlayer.reading import guess, local

if TYPE_CHECKING:
    from cutlayer.methods.method import Method

GROUP = "cutlayer.methods"
"""Entry points of installed packages by which they offer methods."""
HERE = Path(__file__).parent
NO_METHODS = frozenset({"__init__", "contradictions", "described", "method", "source", "table"})
"""The files beside this one that are not a published system."""


@dataclass(frozen=True)
class MethodRow:
    """One method.

    Attributes:
      name: by which a config means it, from any working directory.
      source: its text.
      function: the builder in it.
      ours: whether it is of the table.
    """

    name: str
    source: Source
    function: str
    ours: bool = False

    @cached_property
    def description(self) -> Description:
        """The description that the method's file gives.

        Raises:
          ConfigError: Its file is no method.
        """
        return described(self.source.text, self.function, f"method {self.name}")

    @property
    def summary(self) -> str:
        """One line."""
        return self.description.summary

    @property
    def paper(self) -> str:
        """The paper that the method comes from."""
        return self.description.paper

    @property
    def evidence(self) -> str:
        """The words on how sure the method's facts are."""
        return self.description.evidence

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options and their defaults."""
        return {name: option.default for name, option in self.description.options.items()}

    @cached_property
    def build(self) -> Callable[..., Method]:
        """The builder; its keyword arguments are the method's options.

        Raises:
          ConfigError: Its file raises when it is imported.
        """
        builder: Callable[..., Method] = getattr(self.source.load(), self.function)
        return builder

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Looks at the options without importing the method.

        Raises:
          ConfigError: It does not know one, or one is no value of its kind.
        """
        known = self.description.options
        for option, value in options.items():
            if option not in known:
                raise ConfigError(
                    f"method.{option}: expected an option of {self.name} ({', '.join(known) or 'it has none'}), got "
                    f"{option!r}. {guess(option, known) or 'Remove it or correct its name.'}"
                )
            _check_type(self.name, option, value, known[option])

    def built(self, options: Mapping[str, Any], seed: int) -> Method:
        """The method, with these options and the defaults of others.

        Args:
          options: by name; values may be text from a command line and are read as YAML was.
          seed: for what the method draws.

        Raises:
          ConfigError: It does not know an option, or its builder makes no method.
        """
        from cutlayer.methods.method import Method

        self.check_options(options)
        given = {**options, **({"seed": seed} if self.description.seeded else {})}
        try:
            method = self.build(**given)
        except CutlayerError:
            raise
        except Exception as error:
            raise ConfigError(
                f"method {self.name}: expected a Method from {self.function}(...), got "
                f"{described_error(error, self.source.path)}. Correct it."
            ) from error
        if not isinstance(method, Method):
            raise ConfigError(
                f"method {self.name}: expected a Method from {self.function}(...), got {type(method).__name__}. "
                "Return cutlayer.Method(plan=..., round=..., aggregate=...)."
            )
        return method


def _row(name: str) -> MethodRow:
    return MethodRow(name, Source(HERE / f"{name}.py", f"{__package__}.{name}"), name, ours=True)


TABLE: dict[str, MethodRow] = {
    file.stem: _row(file.stem) for file in sorted(HERE.glob("*.py")) if file.stem not in NO_METHODS
}
"""The rows by name."""


def offered() -> dict[str, EntryPoint]:
    """The methods that installed packages offer, by name, but for names of the table."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in TABLE}


def found(name: str, sha256: str | None = None) -> MethodRow:
    """The method that a config means.

    Args:
      name: A name of the table, FILE.py:FUNCTION, MODULE:FUNCTION, or a name that an installed package offers.
      sha256: The digest that its text must have; None takes any.

    Raises:
      ConfigError: There is none, or its text is another.
    """
    row = TABLE.get(name) or _elsewhere(name)
    if sha256 not in (None, row.source.sha256):
        raise ConfigError(
            f"method {name}: expected the text with which this run began (SHA-256 {str(sha256)[:12]}...), got another "
            f"({row.source.sha256[:12]}...): {row.source.path} has changed. Put it back, or start a new run."
        )
    return row


def _elsewhere(name: str) -> MethodRow:
    place, colon, function = name.rpartition(":")
    if colon and function.isidentifier():
        if place.endswith(".py"):
            path = local(place).resolve()
            return MethodRow(f"{path}:{function}", Source(path), function)
        if all(part.isidentifier() for part in place.split(".")):
            return MethodRow(name, module_source(place), function)
    elif not colon and (point := offered().get(name)):
        return MethodRow(name, module_source(point.module), point.attr)
    known = [*TABLE, *offered()]
    form = "Name a function in it: FILE.py:FUNCTION." if name.endswith(".py") else ""
    raise ConfigError(
        f"method.name: expected one of {', '.join(known)}, got {name!r}. "
        f"{form or guess(name, known) or 'See `cutlayer methods`, or name a file: ./mine.py:mine.'}"
    )


def build_method(name: str, options: Mapping[str, Any], seed: int, sha256: str | None = None) -> Method:
    """The method by name, with its options: `found`, then `MethodRow.built`.

    Raises:
      ConfigError: There is no such method, it is another than it was, or it does not know an option.
    """
    return found(name, sha256).built(options, seed)


def _check_type(name: str, option: str, value: Any, known: Option) -> None:
    """Options are plain values: text, whole numbers, numbers, true or false, or nothing."""
    allowed = kinds_of(known.kind)
    kind = "None" if value is None else type(value).__name__
    if kind not in allowed and not (kind == "int" and "float" in allowed):
        raise ConfigError(f"method.{option}: expected {known.kind} for {name}, got {value!r}. Change its value.")
