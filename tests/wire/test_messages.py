"""Rules that hold for every message, the next one included."""

import dataclasses
import re
from typing import Any, get_args, get_type_hints

import pytest
from torch import Tensor

from cutlayer.types import Adapter
from cutlayer.wire.messages import ROLES, Finish, Judge, Message, SiteReport, SiteRound

KINDS = get_args(Message)
EXACT = {"facts", "folds", "kept", "tensors", "gradients"}
"""Tensors that both ends must hold alike: what a shape declares, what is added to frozen weights, what is left of a
pruned model, what a span trains for a device, and how."""


@pytest.mark.parametrize("kind", KINDS)
def test_names_its_run_and_round_first(kind: type[Any]) -> None:
    assert [field.name for field in dataclasses.fields(kind)][:2] == ["run", "round"]


@pytest.mark.parametrize("kind", KINDS)
def test_its_docstring_says_the_direction_and_each_field(kind: type[Any]) -> None:
    text = kind.__doc__ or ""
    told = re.findall(r"^ {6}(\w+): ", text, flags=re.MULTILINE)
    assert told == [field.name for field in dataclasses.fields(kind)]
    assert text.startswith(("Server to device", "Device to server", "Server to site", "Site to server", "Either way"))


def test_is_frozen_and_has_no_other_attributes() -> None:
    message = Finish("run", 0, "done")
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.reason = "other"  # type: ignore[misc]
    assert not hasattr(message, "__dict__")


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_adapters_may_travel_packed_and_nothing_else(kind: type[Any]) -> None:
    hints = get_type_hints(kind)
    hidden = {name for name, hint in hints.items() if hint in (Tensor, Tensor | None) and name.endswith("D")}
    adapters = {name for name, hint in hints.items() if hint == Adapter} - EXACT
    # it is judged, and not what packing leaves of it; a mean of means is the mean as long as nobody rounds it
    adapters -= {"adapter"} if kind in (Judge, SiteReport, SiteRound) else set()
    assert ROLES.get(kind, {}).keys() == hidden | adapters
    assert all((ROLES[kind][name] in ("activations", "gradients")) == (name in hidden) for name in ROLES.get(kind, {}))
