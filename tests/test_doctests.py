"""The examples in docstrings: those of public names run as they are written, with nothing imported before."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cutlayer

SOURCE = Path(__file__).parents[1] / "src"
EXAMPLES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if ">>> " in path.read_text())
PUBLIC = sorted(set(cutlayer.__all__) - {"__version__"})


def run(tests: Iterator[doctest.DocTest]) -> int:
    """Runs the examples and gives their number; the first that fails is told."""
    runner, told = doctest.DocTestRunner(), list[str]()
    for test in tests:
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)
    return runner.tries


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = getattr(cutlayer, name)
    assert run(test for test in doctest.DocTestFinder(recurse=False).find(named, name, globs={}))


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_modules(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of what is not public may use the names of its module."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    found = doctest.DocTestFinder().find(module)
    run(test for test in found if test.name.rpartition(".")[2] not in PUBLIC)
