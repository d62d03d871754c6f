"""The code that docs/your-own-method.md shows does what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cutlayer.methods.table import found
from cutlayer.testing.laws import LAWS, Subject, judge
from real import values_for

PAGE = Path(__file__).parents[1] / "docs" / "your-own-method.md"
METHOD, PLANNER, PLANNED, IN_PYTHON = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METHOD)
    return tmp_path / "mine.py"


def ran(code: str, names: dict[str, Any] | None = None) -> str:
    """The text that the code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(PAGE), "exec"), {} if names is None else names)
    return out.getvalue()


def test_the_method_is_twenty_lines_and_keeps_the_laws(mine: Path) -> None:
    row = found("./mine.py:mine")
    assert row.evidence == "made up"
    assert row.options == {"fraction": 1.0}
    assert row.description.options["fraction"].help == "Of the fleet, drawn anew every round."
    assert len([line for line in METHOD.splitlines() if line.strip()]) <= 20
    laws = {name: law for name, law in LAWS.items() if name != "stop_and_resume_is_never_stopped"}
    assert {verdict.word for verdict in judge(Subject(row), laws)} == {"holds", "does not apply"}


def test_the_planner_plans() -> None:
    assert ran(PLANNER + PLANNED) == "[1, 1, 2]\n"


def test_in_python(mine: Path, inputs: Path) -> None:
    nested: dict[str, Any] = {}
    for key, value in values_for(inputs, train__rounds=1, train__local_steps=1).items():
        section, _, name = key.partition(".")
        nested[section] = {**nested.get(section, {}), name: value} if name else value
    Path("run.yaml").write_text(yaml.safe_dump(nested))
    names: dict[str, Any] = {}
    printed = ran(IN_PYTHON.replace("seeds=3", "seeds=1"), names)
    assert str(names["outcome"].adapter) in printed
    assert [figures.label for figures in names["results"].methods] == ["./mine.py:mine", "memsfl"]
