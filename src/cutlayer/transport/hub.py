"""Whether there is a hub to ask: its client tries a network that is not there again and again, for a minute."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from functools import cache
from threading import Thread
from urllib.parse import urlsplit

PATIENCE_SECONDS = 3.0
"""For a connection, and for a name to be looked up."""


@cache
def look_for_hub() -> None:
    """Tells the hub's client, once in a process, to do without a hub where none can be reached: what it has fetched
    before is there all the same, and of anything else it says at once that it is not.

    Behind a proxy, and where a person has said `HF_HUB_OFFLINE`, nothing is changed.
    """
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies() or address.hostname is None:
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    if reachable(address.hostname, port):
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later, and for other processes
    constants.HF_HUB_OFFLINE = True
    if (of_datasets := sys.modules.get("datasets.config")) is not None:
        of_datasets.HF_HUB_OFFLINE = of_datasets.HF_DATASETS_OFFLINE = True  # type: ignore[attr-defined]


def reachable(host: str, port: int, patience_seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether somebody takes a connection there.

    Args:
      host: Its name or address; the system may take long to look a name up, and is not waited for.
      port: Where.
      patience_seconds: For that, and as long again for the connection.
    """
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), patience_seconds).close()
        except OSError:
            found.append(False)
        else:
            found.append(True)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience_seconds * 4 / 3)
    return found == [True]
