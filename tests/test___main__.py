"""`python -m cutlayer` answers at once."""

from __future__ import annotations

import subprocess
import sys

import cutlayer


def test_it_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "cutlayer", "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"cutlayer {cutlayer.__version__}\n", "")


def test_help_and_fleets_import_neither_torch_nor_what_builds_on_it() -> None:
    code = (
        "import sys\nfrom cutlayer.cli import main\n"
        "for command in (['train', '--help'], ['fleets']):\n"
        "    try: main(command)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
