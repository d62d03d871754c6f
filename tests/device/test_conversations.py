"""The conversations themselves are tested beside the server's ends: tests/rounds/."""

from __future__ import annotations

import pytest

from cutlayer.device.conversations import CONVERSATIONS, conversation_by_name
from cutlayer.errors import JoinError
from cutlayer.methods.table import TABLE, build_method


@pytest.mark.parametrize("name", TABLE)
def test_a_device_can_hold_the_conversation_of_every_method(name: str) -> None:
    assert build_method(name, {}, 0).round.conversation in CONVERSATIONS


def test_a_conversation_of_another_version_is_refused() -> None:
    with pytest.raises(JoinError, match="Install the server's version"):
        conversation_by_name("swarm")
