"""Checks of the places that an export goes to, a folder and maybe a hub: made before torch is imported."""

from __future__ import annotations

import re
from pathlib import Path

from cutlayer.errors import ConfigError


def check_free(folder: Path) -> None:
    """Raises ConfigError for a folder in which something is."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out: expected a folder that is not there yet, got {folder}. Use another, or remove it.")


def check_hub_name(name: str) -> None:
    """Raises ConfigError for what is not OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"--push: expected OWNER/NAME, got {name!r}. Change it.")
