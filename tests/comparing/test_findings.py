"""The method that was best at each thing, and by how much."""

from __future__ import annotations

from cutlayer.comparing.findings import Finding, findings
from made_up_figures import results_of


def test_the_best_and_the_next() -> None:
    found = {one.what: one for one in findings(results_of({"memsfl": [[0.2, 0.6]], "vanilla": [[0.2, 0.7]]}))}
    assert found["highest final accuracy"] == Finding("highest final accuracy", "0.7", "vanilla", "then memsfl, 0.6", 1)
    assert found["least time to accuracy 0.5"].than == "vanilla takes 2 times as much"
    assert found["least time to accuracy 0.5"].method == 0
    assert found["smallest server"] == Finding("smallest server", "3.9 KiB", "all alike", "", None)


def test_only_one_or_none_got_there() -> None:
    one = list(findings(results_of({"memsfl": [[0.2, 0.6]], "vanilla": [[0.2, 0.3]]})))[1]
    assert (one.who, one.than) == ("memsfl", "no other got there")
    none = list(findings(results_of({"memsfl": [[0.2, 0.3]], "vanilla": [[0.2, 0.3]]})))[1]
    assert (none.figure, none.who, none.method) == ("–", "no method got there", None)


def test_without_a_target_the_whole_budget_counts() -> None:
    found = list(findings(results_of({"memsfl": [[0.2, 0.6]], "vanilla": [[0.2, 0.7]]}, target=None)))
    assert [one.what for one in found[1:4]] == ["least time", "fewest bytes", "least device work"]
