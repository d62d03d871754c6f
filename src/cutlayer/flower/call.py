"""The call: what a run's one Flower message tells a device, namely where the run is and how to prove itself there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutlayer.errors import JoinError

CALL, DECLINED = "cutlayer.call", "cutlayer.declined"
"""The records of a message and of its reply."""


@dataclass(frozen=True, slots=True, repr=False)
class Call:
    """An invitation to a run. Its repr shows nothing: logs of Flower show messages.

    Attributes:
      address: `HOST:PORT` of the run's own stream.
      authority: the certificate that the server's is signed by, PEM; made for this run.
      token: the device's proof, for this run.
    """

    address: str
    authority: str
    token: str

    def as_record(self) -> dict[str, str]:
        """The call as a Flower message carries it."""
        return {"address": self.address, "authority": self.authority, "token": self.token}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Call:
        """Reads the call that a message carries.

        Raises:
          JoinError: It is another app's.
        """
        values = [record.get(field) for field in ("address", "authority", "token")]
        if not all(isinstance(value, str) and value for value in values):
            raise JoinError(
                f"Flower message: expected an address, an authority and a token, got {', '.join(sorted(record))}. "
                "Run an app whose serverapp is cutlayer.flower.server_app:app."
            )
        return cls(*map(str, values))
