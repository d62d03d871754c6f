"""compare.md."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.comparing.markdown import report_md
from made_up_figures import results_of


def test_the_page() -> None:
    text = report_md(results_of({"memsfl": [[0.2, 0.6], [0.2, 0.8]], "vanilla": [[0.2, 0.3], [0.2, 0.2]]}))
    lines = text.splitlines()
    assert lines[0] == "# Comparison"
    assert "## To accuracy ≥ 0.5" in lines
    assert "| `vanilla` | not reached | – | – | – | – | – | 0.25 ± 0.071 |" in lines
    assert any(line.startswith("| `memsfl` | **0.7 ± 0.1414** | ") for line in lines)
    assert "Seeds: 0, 1. Mean ± sample standard deviation." in lines
    assert not any("failed" in line for line in lines)
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {9, 11}


def test_it_names_what_failed() -> None:
    results = replace(results_of({"memsfl": [[0.2, 0.6]]}), failed={"vanilla-seed0": "expected this, got that."})
    lines = report_md(results).splitlines()
    assert lines[2] == "Runs that failed; their methods are left out, as a mean needs every seed:"
    assert lines[4:6] == ["- `vanilla-seed0`: expected this, got that.", ""]
