"""compare.md."""

from __future__ import annotations

from compared import results_of
from cutlayer.compare.markdown import report_md


def test_the_page() -> None:
    text = report_md(results_of({"memsfl": [[0.2, 0.6], [0.2, 0.8]], "vanilla": [[0.2, 0.3], [0.2, 0.2]]}))
    lines = text.splitlines()
    assert lines[0] == "# Comparison"
    assert "## To accuracy ≥ 0.5" in lines
    assert "| `vanilla` | not reached | – | – | – | – | – | 0.25 ± 0.071 |" in lines
    assert any(line.startswith("| `memsfl` | **0.7 ± 0.1414** | ") for line in lines)
    assert "Seeds: 0, 1. Mean ± sample standard deviation." in lines
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {9, 11}
