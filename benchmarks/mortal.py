"""A machine of a swarm that is killed at one of its requests, between taking it and answering it.

    python benchmarks/mortal.py N serve RUN.yaml --span 0:3 --port 7000

The words after N are those of `cutlayer`. The process kills itself (SIGKILL) when the N-th call comes; 0 is never.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys

from cutlayer.cli import main
from cutlayer.server.span import SpanServer
from cutlayer.wire.messages import SpanAnswer, SpanCall


def fatal_request(probability: float, dice: random.Random) -> int:
    """The number of the request at which a machine fails that fails at each with this probability; 0 for never."""
    if not probability:
        return 0
    return 1 + int(math.log(1 - dice.random()) / math.log(1 - probability))


def die_at(number: int) -> None:
    """Has the calls of this process counted, and the process killed at one of them."""
    answer, left = SpanServer.answer, iter(range(number - 1, -1, -1))

    async def counted(server: SpanServer, call: SpanCall) -> SpanAnswer:
        if next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return await answer(server, call)

    SpanServer.answer = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at(int(sys.argv[1]))
    main(sys.argv[2:])
