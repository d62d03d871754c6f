"""Numbers as people read them: `4m 05s`, `12.3 MiB`."""

from __future__ import annotations

import math


def human_seconds(seconds: float) -> str:
    """A duration with two or three significant figures.

    Example:
      >>> [human_seconds(s) for s in (0, 0.0123, 12.34, 245, 11520, 360000)]
      ['0 s', '12.3 ms', '12.3 s', '4m 05s', '3h 12m', '4d 04h']
    """
    if not math.isfinite(seconds):
        return "?"
    if seconds == 0:
        return "0 s"
    if seconds < 0.09995:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if (total := round(seconds)) < 3600:
        return f"{total // 60}m {total % 60:02}s"
    if (total := round(seconds / 60)) < 48 * 60:
        return f"{total // 60}h {total % 60:02}m"
    total = round(seconds / 3600)
    return f"{total // 24}d {total % 24:02}h"


def human_bytes(num_bytes: int) -> str:
    """A size in binary units.

    Example:
      >>> [human_bytes(n) for n in (0, 999, 2048, 5_000_000, 200_000_000, 3 * 2**30)]
      ['0 B', '999 B', '2.0 KiB', '4.8 MiB', '191 MiB', '3.0 GiB']
    """
    if num_bytes < 1024:
        return f"{num_bytes} B"
    value, unit = num_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.5:  # what would print as 1024 belongs to the next unit
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def human_speed(flops_per_second: float) -> str:
    """Floating-point operations per second, in powers of a thousand.

    Example:
      >>> [human_speed(n) for n in (52.2e12, 1.689e12, 38.4e9)]
      ['52.2 TFLOP/s', '1.69 TFLOP/s', '38.4 GFLOP/s']
    """
    return f"{human_flops(flops_per_second)}/s"


def human_flops(flops: float) -> str:
    """Floating-point operations, in powers of a thousand.

    Example:
      >>> [human_flops(n) for n in (0, 950, 12_300, 4.56e12, 7.89e17)]
      ['0 FLOP', '950 FLOP', '12.3 kFLOP', '4.56 TFLOP', '789 PFLOP']
    """
    value, unit = float(flops), ""
    for larger in "kMGTPEZ":
        if value < 999.5:  # what would print as 1000 belongs to the next unit
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}FLOP"
