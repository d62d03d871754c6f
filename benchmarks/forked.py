"""`cutlayer` commands as processes of their own, forked from one that has imported what they need.

They are real processes: with a pid, a memory and sockets of their own, to be killed and frozen. Only the seconds of
imports are saved, of which a benchmark that starts hundreds of them has no use.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

IMPORTED = ["cutlayer.cli", "cutlayer.joining", "cutlayer.run.served"]
IMPORTED += ["torch._dynamo", "transformers.models.gpt2.modeling_gpt2"]  # which the first count of FLOPs imports


def start(words: list[str], said: Connection) -> ForkServerProcess:
    """Starts `cutlayer WORDS`; what it says, on standard output or error, comes out of the other end of `said`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_command, args=(words, said), daemon=True)
    process.start()
    return process


def _command(words: list[str], said: Connection) -> None:
    for number in (1, 2):
        os.dup2(said.fileno(), number)
    os.environ["COLUMNS"] = "300"
    from cutlayer.cli import main

    main(words)
