"""Devices that may come in where `cutlayer up` has started them: each by its own token, and nobody else."""

from __future__ import annotations

import pytest

from cutlayer.errors import Refused
from cutlayer.gate.children import Children


def test_a_child_comes_in_by_its_own_token() -> None:
    children = Children(["pi-1", "pi-2"])
    assert len({*children.tokens.values(), *Children(["pi-1", "pi-2"]).tokens.values()}) == 4
    assert all(len(token) >= 43 for token in children.tokens.values())
    children.standing("pi-1", children.admit("pi-1", children.tokens["pi-1"]))


@pytest.mark.parametrize("token", ["", "xxxx", "ü" * 43])
@pytest.mark.parametrize(("name", "reason"), [("pi-1", "wrong-token"), ("pi-3", "unknown-device")])
def test_nobody_else_does(name: str, reason: str, token: str) -> None:
    children = Children(["pi-1", "pi-2"])
    for given in (token, children.tokens["pi-2"]):
        with pytest.raises(Refused) as error:
            children.admit(name, given)
        assert error.value.reason == reason
        assert not given or given not in str(error.value)
    assert not any(token in repr(children) for token in children.tokens.values())
