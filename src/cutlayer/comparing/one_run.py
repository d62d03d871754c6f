"""One run of a comparison in a process of its own: what `cutlayer train` does, and it ends with the one who asked.

    python -m cutlayer.comparing.one_run    with the config as one line of JSON on standard input

Standard input stays open as long as the comparison lives. When it ends, so does the run, wherever it is: its
checkpoint is what the next command goes on from, and no two processes ever write to one run folder.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from cutlayer.errors import CutlayerError, UserError


def main() -> None:
    """Carries out the run, from its checkpoint where it has one. Exit codes are those of `cutlayer train`."""
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    from cutlayer.config import RunConfig
    from cutlayer.report.progress import NoProgress
    from cutlayer.run.inputs import prepare
    from cutlayer.run.simulated import simulate

    try:
        config = RunConfig.model_validate_json(line)
        simulate(prepare(config), NoProgress(), resume=(Path(config.out) / "config.yaml").exists())
    except CutlayerError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


def _end_with_standard_input() -> None:
    while os.read(0, 4096):  # not `sys.stdin.read()`: that holds a lock which Python wants when it ends
        pass
    os._exit(130)


if __name__ == "__main__":
    main()
