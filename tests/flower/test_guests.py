"""Guests: a token for each call, a name for each guest."""

from __future__ import annotations

from itertools import count

import pytest

from cutlayer.errors import Refused
from cutlayer.flower.guests import Guests


def guests() -> Guests:
    numbers = count()
    return Guests(lambda: f"token-{next(numbers)}")


def refused(guests: Guests, name: str, token: str) -> str:
    with pytest.raises(Refused) as refusal:
        guests.admit(name, token)
    assert not token or token not in str(refusal.value)
    return refusal.value.reason


def test_a_guest_comes_in_and_may_stay_and_come_again() -> None:
    known = guests()
    token = known.invite()
    digest = known.admit("pi", token)
    known.standing("pi", digest)
    assert known.admit("pi", token) == digest
    assert token not in digest


def test_tokens_are_not_alike_and_nobody_guesses_one() -> None:
    known = Guests()
    tokens = {known.invite() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43  # 32 bytes


def test_who_was_not_called_stays_out() -> None:
    known = guests()
    assert refused(known, "pi", "token-0") == "wrong-token"
    known.invite()
    assert refused(known, "pi", "") == "wrong-token"
    assert refused(known, "pi", "token-1") == "wrong-token"


def test_a_token_has_one_name() -> None:
    known = guests()
    token = known.invite()
    assert refused(known, "../pi", token) == "wrong-name"
    known.admit("pi", token)
    assert refused(known, "desk", token) == "wrong-name"


def test_two_nodes_cannot_have_one_name() -> None:
    known = guests()
    first, second = known.invite(), known.invite()
    digest = known.admit("pi", first)
    assert refused(known, "pi", second) == "too-many"
    known.standing("pi", digest)
    known.admit("desk", second)


def test_a_device_whose_node_came_back_as_another_has_its_name_again() -> None:
    known = guests()
    first, second = known.invite(), known.invite()
    before = known.admit("pi", first)
    known.seen([second])
    known.standing("pi", before)  # its node is out of sight, its stream may be well
    known.admit("pi", second)
    with pytest.raises(Refused, match="expected the token"):
        known.standing("pi", before)
    assert refused(known, "pi", first) == "wrong-token"


def test_a_call_that_is_over_lets_nobody_in() -> None:
    known = guests()
    token = known.invite()
    digest = known.admit("pi", token)
    known.forget(token)
    assert refused(known, "pi", token) == "wrong-token"
    with pytest.raises(Refused):
        known.standing("pi", digest)
    known.admit("pi", known.invite())
