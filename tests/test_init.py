"""The package's public names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cutlayer
from cutlayer.model.export import load_finetuned

PROJECT = Path(__file__).parents[1]


def test_every_public_name_is_there() -> None:
    assert all(hasattr(cutlayer, name) for name in cutlayer.__all__)
    assert cutlayer.load_finetuned is load_finetuned


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        cutlayer.no_such_name  # noqa: B018


def test_importing_cutlayer_does_not_import_torch() -> None:
    code = "import sys, cutlayer; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_project_and_of_the_changelog() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    newest = next(line for line in (PROJECT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ["))
    assert cutlayer.__version__ == project["version"]
    assert newest.startswith(f"## [{cutlayer.__version__}]")
