"""Abilities of this machine's processor, as far as torch or the kernel says."""

from __future__ import annotations

import re
from pathlib import Path

import torch

BF16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Words for units that multiply bf16: x86's two, and Arm's."""


def has_bf16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor multiplies bf16 by itself; None where nobody says.

    Args:
      cpuinfo: The kernel's list of what each core can do; where there is none, torch is asked (from 2.10 on).
    """
    if cpuinfo.exists():
        words = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        return all(BF16_UNITS & set(each.split()) for each in words) if words else None
    asked = getattr(torch.cpu, "get_capabilities", None)
    known = {} if asked is None else asked()
    said = [bool(value) for name, value in known.items() if name in BF16_UNITS]
    return any(said) if said else None
