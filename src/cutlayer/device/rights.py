"""Rights to read a file: by its mode where files have one, by its list of access where that is what a system has.

Windows says a list as text (SDDL): `O:OWNER D:(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;S-1-5-21-...)`, an entry for each that
may (A) or may not (D) do something. We have no Windows to run this on: it is tested with what Microsoft's
documentation of that language shows.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

OWN = frozenset({"SY", "BA", "OW", "CO", "S-1-5-18", "S-1-5-32-544", "S-1-3-4"})
"""The system, its administrators, and whoever owns the file: who may read everything anyway."""
ASK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Open:
    """A file that others may read.

    Attributes:
      what: its mode, or who else is on its list.
      mend: a command that changes this.
    """

    what: str
    mend: str


def open_to_others(path: Path, descriptor: int, *, system: str = os.name) -> Open | None:
    """Whether anybody but its owner may read an open file; None where nobody may.

    Args:
      path: Its name.
      descriptor: Of it.
      system: As `os.name`.

    Raises:
      OSError: The system does not say.
    """
    if system != "nt":
        mode = os.fstat(descriptor).st_mode
        others = mode & (stat.S_IRWXG | stat.S_IRWXO)
        return Open(f"mode {mode & 0o777:o}", f"chmod 600 {path}") if others else None
    names = others_on(_list_of(path))
    if not names:
        return None
    return Open(f"a list of access with {', '.join(names)}", f'icacls "{path}" /inheritance:r /grant:r %USERNAME%:F')


def others_on(sddl: str) -> list[str]:
    """Users and groups that may read a file, but for owner, system and administrators; by SID or its short name.

    Args:
      sddl: Its list. One without a list lets everybody.

    Example:
      >>> others_on("O:S-1-5-21-7-1001D:PAI(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;S-1-5-21-7-1001)")
      []
      >>> others_on("O:S-1-5-21-7-1001D:(A;ID;FA;;;S-1-5-21-7-1001)(A;ID;0x1200a9;;;BU)(D;;FA;;;WD)")
      ['BU']
    """
    owner = re.search(r"O:(S-[\d-]+|[A-Z]{2})", sddl)
    entries = re.search(r"D:[A-Z]*((?:\([^)]*\))*)", sddl)
    if entries is None or "NO_ACCESS_CONTROL" in sddl:
        return ["everybody"]
    mine = OWN | ({owner[1]} if owner else set())
    allowed = (entry.split(";") for entry in re.findall(r"\(([^)]*)\)", entries[1]))
    return sorted({entry[5] for entry in allowed if entry[0] in ("A", "XA", "OA") and entry[5] not in mine})


def _list_of(path: Path) -> str:
    """The list of access that Windows has of a file, as text."""
    asked = [
        "powershell",
        "-NoProfile",
        "-NonInteractive",
        "-Command",
        "(Get-Acl -LiteralPath $env:CUTLAYER_ASKED).Sddl",
    ]
    environment = {**os.environ, "CUTLAYER_ASKED": str(path)}  # no name of a file is ever part of a command
    try:
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True, timeout=ASK_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        raise OSError(0, f"a list of access that cannot be read ({type(error).__name__})", str(path)) from None
    return done.stdout.strip()
