"""The spelling of codecs; read without torch, so that a flag is checked before seconds of imports."""

from __future__ import annotations

import math

from cutlayer.errors import ConfigError

SPELLED = "none, bf16, int8 or topk:FRACTION with a fraction above 0 and at most 1"
"""Spellings of a codec that a person may write."""
SPELLED_ADAPTERS = f"{SPELLED}, or sparse:FRACTION:BITS with 4, 8, 16 or 32 bits"
"""Spellings of a codec for adapters."""
PLAIN = ("none", "bf16", "int8")
BITS = (4, 8, 16, 32)


def parse_codec(name: str, *, rows: bool = True) -> tuple[str, float, int]:
    """The kind, the fraction and the bits of a codec; 1.0 and 0 where it has none.

    Args:
      name: See `SPELLED`.
      rows: Whether it packs rows; only what does not may be `sparse`.

    Raises:
      ConfigError: No codec is spelled like this.

    Example:
      >>> parse_codec("int8"), parse_codec("topk:0.1"), parse_codec("sparse:0.25:8", rows=False)
      (('int8', 1.0, 0), ('topk', 0.1, 0), ('sparse', 0.25, 8))
    """
    if name in PLAIN:
        return name, 1.0, 0
    kind, _, text = name.partition(":")
    bits = 0
    if kind == "sparse" and not rows:
        text, _, number = text.partition(":")
        bits = int(number) if number in map(str, BITS) else 0
    try:
        fraction = float(text) if kind == "topk" or bits else math.nan
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise ConfigError(f"codec: expected {SPELLED if rows else SPELLED_ADAPTERS}, got {name!r}. Change it.")
    return kind, fraction, bits
