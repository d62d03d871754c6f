"""The children: devices that `cutlayer up` starts itself, each with a token that nobody else is given.

Everybody on a machine reaches its loopback address. So a child proves itself as any device does: by 32 random bytes,
made for this process's life, which it finds in its environment: no command line, no file and no log has them.
"""

from __future__ import annotations

import hmac
import json
import reprlib
import secrets
from collections.abc import Collection, Iterable, Mapping

from cutlayer.errors import Refused
from cutlayer.gate.roster import TOKEN_BYTES

VARIABLE = "CUTLAYER_CHILDREN"
"""The environment variable that gives a site that `cutlayer up` starts the tokens of the devices that come to it."""


class Children:
    """The register of the children, who may come in (`gate.door.Register`).

    Args:
      names: Of the devices that are started.

    Attributes:
      tokens: by name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.tokens = {name: secrets.token_urlsafe(TOKEN_BYTES) for name in names}

    def passed_on(self, names: Collection[str]) -> dict[str, str]:
        """The environment of a process of this program that lets these in.

        Args:
          names: Of those of its children that come to it.
        """
        return {VARIABLE: json.dumps({name: token for name, token in self.tokens.items() if name in names})}

    @classmethod
    def given(cls, environment: Mapping[str, str]) -> Children | None:
        """Those of whom the process was told that has started this one; None where it was told of none.

        Args:
          environment: Of this process.
        """
        if VARIABLE not in environment:
            return None
        children = cls(())
        children.tokens = json.loads(environment[VARIABLE])
        return children

    def admit(self, name: str, token: str) -> str:
        """Checks a device's token. A process has one for its life, so nothing is left to check later.

        Raises:
          Refused: unknown-device, or wrong-token.
        """
        expected = self.tokens.get(name)
        if expected is None:
            raise Refused(
                "unknown-device",
                f"device {reprlib.repr(name)}: expected a device that this command has started, got another.",
            )
        if not hmac.compare_digest(expected.encode(), token.encode()):
            raise Refused("wrong-token", f"device {name}: expected the token of this command's own, got another.")
        return ""

    def standing(self, name: str, digest: str) -> None:
        """Every child may stay."""

    def __repr__(self) -> str:
        return f"Children({', '.join(self.tokens)})"
