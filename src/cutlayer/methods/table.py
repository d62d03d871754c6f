"""The method table: one row per published system. `cutlayer methods` prints it; every law runs on every row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cutlayer.errors import ConfigError
from cutlayer.methods.fedlora import fedlora
from cutlayer.methods.memsfl import memsfl
from cutlayer.methods.method import Method
from cutlayer.methods.splitlora import splitlora
from cutlayer.methods.vanilla import vanilla


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method of the table.

    Attributes:
      build: the builder; its keyword arguments are the method's options.
      summary: one line.
      paper: where it comes from.
      evidence: how sure its facts are.
    """

    build: Callable[..., Method]
    summary: str
    paper: str
    evidence: str

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options and their defaults."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items() if name != "seed"}


TABLE: dict[str, MethodRow] = {
    "fedlora": MethodRow(
        fedlora,
        "federated averaging: every device trains the whole model's adapter, A and B averaged by samples",
        "arXiv 2305.05644",
        "the authors' code",
    ),
    "memsfl": MethodRow(
        memsfl,
        "one base on the server, an adapter per device swapped in; unequal cuts; the order of devices optimised",
        "arXiv 2506.02940",
        "abstract and reviews; aggregation inferred, order rule recalled",
    ),
    "splitlora": MethodRow(
        splitlora,
        "one shared server adapter, stepped by each device; device adapters averaged every round",
        "arXiv 2407.00952",
        "the authors' code",
    ),
    "vanilla": MethodRow(
        vanilla,
        "split learning with LoRA, the devices in turn",
        "arXiv 1810.06060",
        "public code of sequential split learning",
    ),
}


def build_method(name: str, options: Mapping[str, Any], seed: int) -> Method:
    """The method by name, with its options.

    Args:
      name: a row of the table.
      options: by name; values may be text from a command line and are read as YAML was.
      seed: for what the method draws.

    Raises:
      ConfigError: No such method, or an option that it does not know.
    """
    row = TABLE.get(name)
    if row is None:
        raise ConfigError(f"method.name: expected one of {', '.join(TABLE)}, got {name!r}. See `cutlayer methods`.")
    for option, value in options.items():
        if option not in row.options:
            raise ConfigError(
                f"method.{option}: expected an option of {name} ({', '.join(row.options)}), got {option!r}. "
                "Remove it or correct its name."
            )
        _check_type(name, option, value, row)
    extra = {"seed": seed} if "seed" in inspect.signature(row.build).parameters else {}
    return row.build(**options, **extra)


def _check_type(name: str, option: str, value: Any, row: MethodRow) -> None:
    """Options are plain values: text, whole numbers, numbers, true or false, or nothing."""
    annotation = str(inspect.signature(row.build).parameters[option].annotation)
    allowed = {part.strip() for part in annotation.split("|")}
    kind = "None" if value is None else type(value).__name__
    if kind not in allowed and not (kind == "int" and "float" in allowed):
        raise ConfigError(f"method.{option}: expected {annotation} for {name}, got {value!r}. Change its value.")
