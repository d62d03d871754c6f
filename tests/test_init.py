"""The package's public names."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cutlayer
from cutlayer.methods.table import TABLE
from cutlayer.model.export import load_finetuned

PROJECT = Path(__file__).parents[1]
PUBLIC = {
    *("simulate", "serve", "join", "compare", "load_finetuned", "RunConfig", "ConfigError", "Outcome"),
    # what a method is made of
    *("Method", "Planner", "Round", "ServerStep", "Aggregate"),
    *("Situation", "RoundPlan", "DevicePlan", "Contribution", "Trains"),
    # planners
    *("everyone", "random_fraction", "in_random_order", "kl_cohort"),
    *("cut_at", "cut_by_name", "cut_by_memory", "cut_by_capacity", "cut_by_latency", "whole_model"),
    *("cut_by_qlearning", "RewardWeights"),
    *("uniform_ranks", "arithmetic_ranks", "ranks_by_budget", "ranks_above_deepest_cut", "depth_by_time"),
    *("fixed", "speed_proportional", "regulate_kl", "fill_ingress"),
    *("fresh_moments", "activations_repeat", "self_pruning", "ratio_and_rank_by_bandit"),
    *("through_spans", "at_sites", "pruned_in_time"),
    *("along_directions", "asking", "SeedSearch", "seed_search", "searching"),
    *("layer_deadline", "deadlines_and_batches"),
    *("heads_for", "labels_on_devices", "labels_stay", "delayed", "pareto_plan"),
    *("cut_by_knapsack", "ranks_by_importance", "weighing"),
    *("holding_near", "sparse_then_dense", "staleness_weighted", "buffered", "held_near"),
    *("pruning_below", "dropping_channels", "rounding_to", "aggregating_every"),
    # facts of a round, for the next plan
    *("pruning", "ranks_that_are_left", "reached", "importance_of_modules", "counted_of_spans"),
    # rounds, server steps, orders, who shares what
    *("split", "relay", "stream", "local", "pruned", "shrinking", "hybrid", "queries", "SeedsRound", "layers"),
    *("u_shape", "in_halves", "accumulated_in_halves", "thinned", "weighing_split", "swarm", "sited"),
    *("one_device_at_a_time", "a_copy_each", "merged", "pooled", "epsl", "accumulated"),
    *("one_per_device", "one_for_all"),
    *("fifo", "random_order", "longest_tail", "ratio", "strict_ratio", "optimal", "order_by_name"),
    *("shared", "personal", "personal_below_the_cut", "lowest_blocks_personal"),
    # aggregates
    *("mean_per_block", "with_momentum", "zero_pad", "svd", "stack", "begin_anew", "scatter", "mean_per_layer"),
}
ROOMS = ("cutlayer.policies.", "cutlayer.rounds.", "cutlayer.server.", "cutlayer.methods.")


def test_these_are_the_public_names() -> None:
    assert set(cutlayer.__all__) == {*PUBLIC, "__version__"}
    assert dir(cutlayer) == sorted(cutlayer.__all__)
    assert all(hasattr(cutlayer, name) for name in PUBLIC)
    assert cutlayer.load_finetuned is load_finetuned


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_a_method_file_imports_is_public(name: str) -> None:
    """Somebody who reads a method's file can write the like: all that it is made of is `from cutlayer import ...`."""
    imports = [node for node in ast.parse(TABLE[name].source.text).body if isinstance(node, ast.ImportFrom)]
    ours = (node for node in imports if f"{node.module}.".startswith(ROOMS))
    used = {alias.name for node in ours for alias in node.names if not alias.name.isupper()}  # functions and classes
    missing = used - set(cutlayer.__all__)
    assert not missing, f"add to cutlayer/__init__.pyi and to PUBLIC here: {sorted(missing)}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_has_a_docstring_with_an_example(name: str) -> None:
    """`test_doctests.py` runs it."""
    text = inspect.getdoc(getattr(cutlayer, name)) or ""
    assert "Example:\n  >>> " in text, f"{name} has no example"
    assert text[0].isupper()


def test_commands_are_functions_whatever_was_imported_before() -> None:
    """A module of one of these names would take its place."""
    code = (
        "import cutlayer.joining, cutlayer.comparing.pool, cutlayer.run.served, cutlayer.run.simulated\n"
        "from cutlayer import compare, join, serve, simulate\n"
        "import sys; sys.exit(not all(map(callable, (compare, join, serve, simulate))))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    top = {path.stem for path in (PROJECT / "src" / "cutlayer").iterdir()}
    assert not top & PUBLIC


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
