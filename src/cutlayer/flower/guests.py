"""The guests: devices that this run has called by Flower, each call with a token that this process alone knows.

Flower has checked who a node is; which of the fleet's names it has, its owner says (`--node-config`). The first to come
by a name has it, until Flower no longer sees its node and another comes by the same: the device itself after a restart.
"""

from __future__ import annotations

import hashlib
import reprlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cutlayer.errors import Refused
from cutlayer.gate.roster import NAME, TOKEN_BYTES


@dataclass(slots=True)
class _Guest:
    """A device that was called.

    Attributes:
      name: its own, once it has come.
      seen: whether Flower sees its node.
    """

    name: str = ""
    seen: bool = True


class Guests:
    """The register of the devices that may come in (`server.door.Register`).

    Args:
      make_token: Gives a new secret.
    """

    def __init__(self, make_token: Callable[[], str] = lambda: secrets.token_urlsafe(TOKEN_BYTES)) -> None:
        self._make_token = make_token
        self._guests: dict[str, _Guest] = {}  # by the token's digest

    def invite(self) -> str:
        """A token for one more call."""
        token = self._make_token()
        self._guests[_digest(token)] = _Guest()
        return token

    def forget(self, token: str) -> None:
        """A call is over: its token lets nobody in any more."""
        self._guests.pop(_digest(token), None)

    def seen(self, tokens: Iterable[str]) -> None:
        """Flower sees the nodes of these calls, and no others."""
        digests = {_digest(token) for token in tokens}
        for digest, guest in self._guests.items():
            guest.seen = digest in digests

    def admit(self, name: str, token: str) -> str:
        """Checks what a device says to prove itself; returns the token's digest, for `standing`.

        Raises:
          Refused: wrong-token, wrong-name, or too-many: it may try again.
        """
        if not NAME.fullmatch(name):
            raise Refused("wrong-name", "device: expected a name of letters, digits, `.`, `_`, `-`, got another.")
        digest = _digest(token)
        guest = self._of(digest, name)
        if not guest.name:
            self._take(name)
            guest.name = name
        if guest.name != name:
            raise Refused("wrong-name", f"device {name}: expected the name by which its node has come, got another.")
        return digest

    def standing(self, name: str, digest: str) -> None:
        """Whether a device that came in may still be here.

        Raises:
          Refused: wrong-token: its call is over, or another node has its name now.
        """
        self._of(digest, name)

    def _of(self, digest: str, name: str) -> _Guest:
        if digest not in self._guests:
            raise Refused(
                "wrong-token", f"device {reprlib.repr(name)}: expected the token of a call, got another. Flower calls."
            )
        return self._guests[digest]

    def _take(self, name: str) -> None:
        """Frees a name for who comes by it now."""
        for digest, other in list(self._guests.items()):
            if other.name == name:
                if other.seen:
                    raise Refused(
                        "too-many",
                        f"device {name}: expected one node of this name, got two. Change name in --node-config.",
                    )
                del self._guests[digest]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
