"""The token by which a device proves who it is: from a file or the environment, never from the command line.

Arguments of a process can be read by everybody on its machine, and shells remember them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cutlayer.device.rights import open_to_others
from cutlayer.errors import ConfigError

VARIABLE = "CUTLAYER_TOKEN"
MOST_CHARACTERS = 4096
"""The most characters that are read of the file: a token is one short line."""


def read_token(path: Path | None, environment: Mapping[str, str]) -> str | None:
    """The device's token; None where neither a file nor the variable is given.

    Args:
      path: A file that only its owner may read.
      environment: Where `CUTLAYER_TOKEN` may be, if there is no file.

    Raises:
      ConfigError: The file cannot be read, others may read it, or it holds no token.
    """
    if path is None:
        where, token = VARIABLE, environment.get(VARIABLE)
        if token is None:
            return None
    else:
        where, token = str(path), _read(path)
    token = token.strip()
    if not token.isascii() or not token.isprintable() or len(token.split()) != 1:
        raise ConfigError(
            f"{where}: expected a token, the one word that `cutlayer fleet add` printed, got something else. "
            "Copy it again."
        )
    return token


def _read(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = open_to_others(path, file.fileno())
            if found is not None:
                raise ConfigError(
                    f"{path}: expected a file that only its owner may read, got {found.what}. Run `{found.mend}`, and "
                    "have a new token made if others use this machine."
                )
            return file.read(MOST_CHARACTERS)
    except OSError as error:
        raise ConfigError(
            f"{path}: expected the device's token, got {error.strerror}. Copy it from the server."
        ) from None
