"""Faults, tried and counted.

python benchmarks/faults.py simulate --seeds 2000               everything modelled but the code: a seed replays
python benchmarks/faults.py processes --runs 50                 real processes: killed, frozen, cut off, slowed
python benchmarks/faults.py liars                               one more member, which lies in one field
python benchmarks/faults.py load --devices 32 --minutes 10      many of them, and what they use over time
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

KINDS = {"simulate": "fault_simulation", "processes": "fault_processes", "liars": "fault_liars", "load": "fault_load"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays the kind of faults that the first word names."""
    kind, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if kind not in KINDS:
        raise SystemExit(f"faults: expected one of {', '.join(KINDS)}, got {kind!r}. Name one.")
    import_module(KINDS[kind]).main(rest)


if __name__ == "__main__":
    main()
