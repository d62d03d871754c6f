"""The command `cutlayer`: one command per file here, `flags.py` has the flags of a run.

Modules import torch and what builds on it inside their commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from reprlib import repr as shortened

from cutlayer.cli import log
from cutlayer.cli.app import app
from cutlayer.cli.page import with_address
from cutlayer.cli.terminal import quiet_libraries
from cutlayer.errors import CutlayerError, UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits.

    Exit codes: 0 done; 1 something that arrived from another machine is wrong, or a mistake of ours (with its
    traceback); 2 something that the user gave is wrong; 3 done, but devices were lost; 130 stopped by Ctrl-C,
    143 by SIGTERM.

    Results are on standard output, and everything else on standard error.

    Args:
      arguments: What stands behind `cutlayer`; None takes those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    quiet_libraries()
    try:
        given = log.set_up(given)
        app(with_address([argument for argument in given if argument != "--debug"]), prog_name="cutlayer")
    except CutlayerError as error:
        if "--debug" in given:
            traceback.print_exc()
        log.say_error(" ".join(str(error).split()))
        sys.exit(2 if isinstance(error, UserError) else 1)
    except OSError as error:
        if error.filename is None or "--debug" in given:
            raise
        # The last door: what the system says of a file is a person's to mend, and a service must not try again.
        log.say_error(
            f"{shortened(str(error.filename))}: expected a file or a folder that can be used, got {error.strerror}. "
            "Check the path and its permissions."
        )
        sys.exit(2)
