"""One round as numbers with tags, in four groups: what TensorBoard and every other tracker shows.

train/        the loss, and what it was taken over
validation/   the metrics; those of rows that devices hold out behind held_out_
fleet/        devices, who was late, bytes, the server's memory
time/         seconds of the run's clock at the end of the round, and wall seconds that the round took

Whatever else a row of `round_row.py` comes to hold is in train/. The records by device stay in metrics.jsonl: a fleet
of eighty would bury the curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FLEET = frozenset({"late", "bytes_up", "bytes_down", "server_memory_bytes"})
LEFT_OUT = frozenset({"round", "devices", "validation", "held_out"})


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round's row (`round_row.py`), by tag in order; what is no number is left out.

    Example:
      >>> scalars_of({"round": 0, "loss": 0.5, "late": 1, "wall_seconds": 2.0, "validation": {"accuracy": 0.75}})
      {'fleet/late': 1, 'time/wall_seconds': 2.0, 'train/loss': 0.5, 'validation/accuracy': 0.75}
    """
    return dict(sorted(_tagged(row)))


def step_of(row: Mapping[str, Any]) -> int:
    """The round as people count, from 1."""
    return int(row["round"]) + 1


def _tagged(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if _is_number(value) and key not in LEFT_OUT:
            yield f"{_group(key)}/{key}", value
    devices = row.get("devices") or {}
    if devices:
        yield "fleet/devices", len(devices)
    held_out = row.get("held_out") or {}
    for prefix, metrics in (("", row.get("validation") or {}), ("held_out_", held_out.get("metrics") or {})):
        for name, value in metrics.items():
            if _is_number(value):
                yield f"validation/{prefix}{name}", value
    for key, value in held_out.items():
        if _is_number(value):
            group = _group(key)
            yield f"{'validation' if group == 'train' else group}/held_out_{key}", value


def _group(key: str) -> str:
    if key.endswith("seconds"):
        return "time"
    return "fleet" if key in FLEET else "train"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def settings_of(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """A run's config as flat keys and plain values, for a table of runs.

    What stands in a path before its last part is left out, because a tracker may be on another machine (decision 0039);
    of a fleet that is written out only the number of its devices is told.

    Example:
      >>> settings_of({"train": {"lr": 0.5, "seed": None, "metrics": ["bleu"]}, "data": {"path": "/somebody/reviews"}})
      {'train.lr': 0.5, 'train.metrics': 'bleu', 'data.path': 'reviews'}
    """
    flat: dict[str, str | float | bool] = {}
    for section, content in config.items():
        if section == "fleet" and isinstance(content, Mapping):
            flat["fleet"] = f"{len(content.get('devices') or ())} devices"
        elif isinstance(content, Mapping):
            flat |= {f"{section}.{key}": _plain(value) for key, value in content.items() if _says_something(value)}
        elif _says_something(content):
            flat[section] = _plain(content)
    return flat


def _says_something(value: object) -> bool:
    return not isinstance(value, Mapping) and value not in (None, "", (), [])


def _plain(value: Any) -> str | float | bool:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(one)) for one in value)
    text = str(value)
    rooted = text.startswith(("/", "~", "\\")) or text[1:3] in (":\\", ":/")
    return text.replace("\\", "/").rsplit("/", 1)[-1] if rooted else text
