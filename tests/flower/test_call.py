"""The call: what it carries arrives, and it shows no secret."""

from __future__ import annotations

import pytest

from cutlayer.errors import JoinError
from cutlayer.flower.call import Call

CALL = Call("example.org:7070", "-----BEGIN CERTIFICATE-----", "secret")


def test_a_call_arrives_as_it_was_made() -> None:
    assert Call.read(CALL.as_record()) == CALL


@pytest.mark.parametrize("field", ["address", "authority", "token"])
@pytest.mark.parametrize("value", [None, "", 7])
def test_what_is_no_call_is_refused(field: str, value: object) -> None:
    with pytest.raises(JoinError, match="expected an address, an authority and a token") as error:
        Call.read({**CALL.as_record(), field: value})
    assert "secret" not in str(error.value)


def test_its_repr_shows_nothing() -> None:
    assert "secret" not in repr(CALL)
