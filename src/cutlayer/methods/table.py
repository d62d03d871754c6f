"""The method table: one row per published system. `cutlayer methods` prints it; every law runs on every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from cutlayer.errors import ConfigError
from cutlayer.methods.described import Option, described

if TYPE_CHECKING:
    from cutlayer.methods.method import Method


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method of the table.

    Attributes:
      name: of the method, of its file here and of the builder in it, which is imported when it is first built.
      summary: one line.
      paper: where it comes from.
      evidence: how sure its facts are.
    """

    name: str
    summary: str
    paper: str
    evidence: str

    @property
    def build(self) -> Callable[..., Method]:
        """The builder; its keyword arguments are the method's options."""
        return cast("Callable[..., Method]", getattr(import_module(f"cutlayer.methods.{self.name}"), self.name))

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options and their defaults."""
        return {name: option.default for name, option in described(self.name).options.items()}


ROWS = (
    MethodRow(
        "centralized",
        "the bound: one adapter for all blocks, trained on batches mixed over all devices",
        "none",
        "no published system",
    ),
    MethodRow(
        "fedlora",
        "federated averaging: every device trains the whole model's adapter, A and B averaged by samples",
        "arXiv 2305.05644",
        "the authors' code",
    ),
    MethodRow(
        "fedspine",
        "federated on models that shrink: heads and channels pruned; ratio and rank chosen per device by a bandit",
        "arXiv 2501.02438",
        "reviews; importance from LoRAPrune's code, bandit from memory, its reward is our reading",
    ),
    MethodRow(
        "flexlora",
        "federated, unequal ranks: the products B A averaged and factored anew by SVD to each device's rank",
        "arXiv 2402.11505",
        "the authors' code; who gets which rank is our reading",
    ),
    MethodRow(
        "flora",
        "federated, unequal ranks: adapters stacked, which is their exact mean, and merged into everyone's base",
        "arXiv 2409.05976",
        "the authors' code; who gets which rank is our reading",
    ),
    MethodRow(
        "hetlora",
        "federated, unequal ranks: adapters truncated on the way down, zero-padded and averaged on the way up",
        "arXiv 2401.06432",
        "general knowledge of the paper, third-party code",
    ),
    MethodRow(
        "legend",
        "federated; each device adapts its last blocks, as many as its measured speed allows, ranks rising upwards",
        "arXiv 2412.20004",
        "reviews; rank list from a re-implementation, the choice of depths is our reading",
    ),
    MethodRow(
        "local_only",
        "the floor: every device trains alone, nothing is averaged; metrics are means over devices",
        "none",
        "no published system",
    ),
    MethodRow(
        "memsfl",
        "one base on the server, an adapter per device swapped in; unequal cuts; the order of devices optimised",
        "arXiv 2506.02940",
        "abstract and reviews; aggregation inferred, order rule recalled",
    ),
    MethodRow(
        "mergesfl",
        "the features of all devices in one batch, one server adapter; batch sizes by speed, cohorts by labels",
        "arXiv 2311.13348",
        "training from the authors' code; control recalled",
    ),
    MethodRow(
        "reindsplit",
        "split learning whose cuts move: one Q table for all devices weighs their work against a latency threshold",
        "arXiv 2506.13935",
        "abstract; states, reward and aggregation are our reading",
    ),
    MethodRow(
        "sfl_v1",
        "a server copy for every device; both sides averaged every round, unweighted",
        "arXiv 2004.12088",
        "the authors' code",
    ),
    MethodRow(
        "sfl_v2",
        "one shared server adapter, stepped by the devices in random order; device adapters averaged",
        "arXiv 2004.12088",
        "the authors' code; the order per step is our reading",
    ),
    MethodRow(
        "sl",
        "sequential split learning, the devices in a fresh random order every round",
        "arXiv 1812.00564",
        "public code of sequential split learning",
    ),
    MethodRow(
        "splitfrozen",
        "devices hold frozen blocks and only run forward; one adapter on the server, trained on mixed batches; "
        "activations are sent once",
        "arXiv 2503.18986",
        "abstract and reviews; partition rule, mixing window and layers inferred",
    ),
    MethodRow(
        "splitlora",
        "one shared server adapter, stepped by each device; device adapters averaged every round",
        "arXiv 2407.00952",
        "the authors' code",
    ),
    MethodRow(
        "vanilla",
        "split learning with LoRA, the devices in turn",
        "arXiv 1810.06060",
        "public code of sequential split learning",
    ),
)

TABLE: dict[str, MethodRow] = {row.name: row for row in ROWS}
"""The rows by name."""


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
    description = described(name)
    for option, value in options.items():
        if option not in description.options:
            raise ConfigError(
                f"method.{option}: expected an option of {name} ({', '.join(description.options)}), got {option!r}. "
                "Remove it or correct its name."
            )
        _check_type(name, option, value, description.options[option])
    return row.build(**options, **({"seed": seed} if description.seeded else {}))


def _check_type(name: str, option: str, value: Any, known: Option) -> None:
    """Options are plain values: text, whole numbers, numbers, true or false, or nothing."""
    allowed = {part.strip() for part in known.kind.split("|")}
    kind = "None" if value is None else type(value).__name__
    if kind not in allowed and not (kind == "int" and "float" in allowed):
        raise ConfigError(f"method.{option}: expected {known.kind} for {name}, got {value!r}. Change its value.")
