"""File descriptors: as many as this process may have, and how many of them are for connections.

Each connection of a stranger takes one, and a process that has none left can neither read its roster nor write its
checkpoint. So connections are capped below what there is.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cutlayer.errors import ConfigError

resource: Any
try:
    import resource
except ImportError:  # Windows, where the system bounds sockets by memory alone
    resource = None

T = TypeVar("T")

WANTED = 4096
"""The soft limit is raised to this where the hard one allows it: connections in all, and room for everything else."""
SPARE = 256
"""Descriptors for all that is no connection of a device: files of model and run, threads of gRPC, workers."""
LEAST = 2 * SPARE
"""Descriptors without which a server does not start."""
LACKING = frozenset({errno.EMFILE, errno.ENFILE})
TRIES, WAIT_SECONDS = 60, 0.5
"""Strangers' connections are closed within ten seconds; a checkpoint waits for three times as long."""


def most_sockets(wanted: int) -> int:
    """Returns how many connections a server may have at a time, and raises the soft limit of descriptors for them.

    Args:
      wanted: As many as it would have.

    Raises:
      ConfigError: There are too few descriptors to serve anybody.
    """
    limit = _raised()
    if limit is None:
        return wanted
    if limit < LEAST:
        raise ConfigError(
            f"serve: expected at least {LEAST} file descriptors, of which each connection takes one, got {limit}. "
            f"Raise the limit (`ulimit -n {WANTED}`, or LimitNOFILE= of a service)."
        )
    return min(wanted, limit - SPARE)


def _raised() -> int | None:
    """The soft limit, after it was raised where that is possible; None where there is none."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    better = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if better > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (better, hard))
        except (OSError, ValueError):  # macOS has a lower limit of its own
            return int(soft)
        soft = better
    return int(soft)


def with_descriptors(work: Callable[[], T], wait: Callable[[float], None] = time.sleep) -> T:
    """Does what needs files, again where there were no descriptors for them.

    Args:
      work: What to do; it may be done from the beginning again.
      wait: For so many seconds.

    Raises:
      OSError: There were none for half a minute, or something else is wrong.
    """
    for _ in range(TRIES):
        try:
            return work()
        except OSError as error:
            if error.errno not in LACKING:
                raise
            wait(WAIT_SECONDS)
    return work()
