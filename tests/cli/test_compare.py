"""`cutlayer compare` from the words to the report: what it leaves, what it keeps, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import yaml

from browser import Browser
from commands import Ran, World, run

ROUNDS = 3


def flags(world: World, out: Path, *more: object) -> list[object]:
    size = ["--rounds", ROUNDS, "--target", 0.3, "--jobs", 2, "--out", out]
    return ["memsfl", "vanilla:cut=2", *world.classification(), *size, *more]


@pytest.fixture(scope="module")
def compared(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A comparison that was never stopped, and what it printed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    ran = run("compare", *flags(made_once, out))
    assert (ran.code, ran.err) == (0, "")
    return out, ran


def figures(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return content


def test_it_ends_with_tables_and_files(compared: tuple[Path, Ran]) -> None:
    out, ran = compared
    assert {path.name for path in out.iterdir()} == {
        "compare.json",
        "compare.md",
        "compare.yaml",
        "report.html",
        "runs",
    }
    assert {path.name for path in (out / "runs").iterdir()} == {"memsfl-seed0", "vanilla-cut=2-seed0"}
    lines, progress = ran.out.splitlines(), ran.progress.splitlines()
    assert sum(line.endswith(" begins") for line in progress) == 2
    assert sum(" is done  accuracy " in line for line in progress) == 2
    assert "To accuracy ≥ 0.3 (* best)" in lines
    files = [out / name for name in ("report.html", "compare.md", "compare.json")]
    assert lines[-2:] == [f"report: {files[0]}", f"tables: {files[1]}, figures: {files[2]}"]


def test_the_figures_are_those_of_the_runs(compared: tuple[Path, Ran]) -> None:
    out, _ = compared
    content = figures(out)
    assert (content["metric"], content["target"], content["seeds"]) == ("accuracy", 0.3, [0])
    assert [method["label"] for method in content["methods"]] == ["memsfl", "vanilla:cut=2"]
    for method in content["methods"]:
        [one] = method["runs"]
        summary = json.loads((out / one["folder"] / "summary.json").read_text())
        rows = [json.loads(line) for line in (out / one["folder"] / "metrics.jsonl").read_text().splitlines()]
        assert len(one["curve"]) == 1 + ROUNDS
        assert one["curve"][0]["metrics"] == summary["metrics_before"]
        last = one["curve"][-1]
        assert last["metrics"] == summary["metrics"]
        totals = summary["totals"]
        assert last["spent"]["bytes"] == totals["bytes_up"] + totals["bytes_down"]
        assert last["spent"]["virtual_seconds"] == rows[-1]["virtual_seconds"]
        flops = {"slow": 0.3e7, "quick": 0.6e7}  # effective, of the fleet
        done = sum(device["busy_seconds"] * flops[name] for row in rows for name, device in row["devices"].items())
        assert last["spent"]["flops"] == pytest.approx(done)
        assert one["server_bytes"] > 0
        assert one["device_bytes"] > 0
    assert content["shared"]["train"]["rounds"] == ROUNDS
    assert "seed" not in content["shared"]["train"]


def test_both_had_the_same_data_and_the_same_start(compared: tuple[Path, Ran]) -> None:
    out, _ = compared
    one, other = (out / "runs" / name for name in ("memsfl-seed0", "vanilla-cut=2-seed0"))
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (one, other)]
    for config in configs:
        del config["method"], config["out"]
    assert configs[0] == configs[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert summaries[0]["metrics_before"] == summaries[1]["metrics_before"]
    assert summaries[0]["totals"]["samples"] == summaries[1]["totals"]["samples"]


def test_a_browser_opens_the_report(compared: tuple[Path, Ran], browser: Browser) -> None:
    out, _ = compared
    opened = browser.open((out / "report.html").as_uri())
    assert opened.console == []
    assert opened.value("document.querySelectorAll('polyline.line').length") == 3 * 2
    assert opened.value("document.querySelectorAll('.scroll.gantt').length") == 2
    assert "memsfl, after round 3" in opened.value("document.getElementById('points').textContent")


def test_what_is_done_is_kept_and_more_may_be_asked(compared: tuple[Path, Ran], made_once: World) -> None:
    out, _ = compared
    before = (out / "compare.json").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    ran = run("compare", *flags(made_once, out))
    assert (ran.code, ran.err) == (0, "")
    assert ran.progress.splitlines()[0] == "2 of 2 runs are done already and kept"
    assert (out / "compare.json").read_bytes() == before
    ran = run("compare", "vanilla:cut=2", *flags(made_once, out)[2:], "--metric", "loss", "--target", 0.001)
    assert ran.code == 0
    assert figures(out)["methods"][0]["reached"] == 0
    assert "not reached" in ran.out
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == times
    assert run("compare", *flags(made_once, out)).code == 0


@pytest.mark.slow
def test_stopped_half_way_and_begun_again_it_comes_to_the_same(
    compared: tuple[Path, Ran], made_once: World, tmp_path: Path
) -> None:
    whole, _ = compared
    out = tmp_path / "out"

    def stop(_self: object, _run: object, row: dict[str, Any]) -> None:
        if row["round"] == 0:
            raise KeyboardInterrupt

    with mock.patch("cutlayer.comparing.progress.Progress.round_done", stop):
        ran = run("compare", *flags(made_once, out))
    assert (ran.code, ran.err) == (130, f"interrupted: the same command goes on; what was done is in {out}\n")
    assert not (out / "compare.json").exists()
    again = run("compare", *flags(made_once, out))
    assert (again.code, again.err) == (0, "")
    assert any(" goes on after round " in line for line in again.progress.splitlines())
    assert (out / "compare.json").read_bytes() == (whole / "compare.json").read_bytes()
    assert (out / "compare.md").read_bytes() == (whole / "compare.md").read_bytes()


FAILS_WITH_VANILLA = """
import io, json, sys
from cutlayer.comparing import one_run
line = sys.stdin.readline()
if json.loads(line)["method"]["name"] == "vanilla" and json.loads(line)["train"]["seed"] == 1:
    sys.exit("error: round 0: expected a finite loss, got nan. Lower <the> rate.")
sys.stdin.readline = lambda: line
one_run.main()
"""


@pytest.mark.slow
def test_a_run_that_fails_leaves_a_report_of_the_others(made_once: World, tmp_path: Path) -> None:
    """The report is of the methods of which every run ended; it names what failed, and the same command tries again."""
    out = tmp_path / "out"
    asked = flags(made_once, out, "--rounds", 1, "--seeds", 2)
    with mock.patch("cutlayer.comparing.pool.COMMAND", (sys.executable, "-c", FAILS_WITH_VANILLA)):
        ran = run("compare", *asked)
    assert ran.code == 1
    problem = "round 0: expected a finite loss, got nan. Lower <the> rate."
    assert "expected 4 runs to end, got 1 that failed; the first is vanilla-cut=2-seed1: " + problem in ran.err
    assert f"report: {out / 'report.html'}" in ran.out.splitlines()
    content = figures(out)
    assert [method["label"] for method in content["methods"]] == ["memsfl"]
    assert content["failed"] == {"vanilla-cut=2-seed1": problem}
    assert problem in (out / "compare.md").read_text()
    assert "expected a finite loss, got nan. Lower &lt;the&gt; rate." in (out / "report.html").read_text()
    again = run("compare", *asked)
    assert (again.code, again.err) == (0, "")
    assert again.progress.splitlines()[0] == "3 of 4 runs are done already and kept"
    assert (len(figures(out)["methods"]), figures(out)["failed"]) == (2, {})
    assert "failed" not in (out / "compare.md").read_text()


def test_where_every_run_fails_there_is_no_report(made_once: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with mock.patch("cutlayer.comparing.pool.COMMAND", (sys.executable, "-c", "raise SystemExit(2)")):
        ran = run("compare", *flags(made_once, out, "--rounds", 1))
    assert ran.code == 2
    assert "got 2 that failed; the first is memsfl-seed0: exit code 2." in ran.err
    assert not (out / "report.html").exists()


@pytest.mark.slow
def test_killed_it_leaves_no_run_behind(made_once: World, tmp_path: Path) -> None:
    """Its runs would go on for hours: they end because it has."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cutlayer", "compare", *map(str, flags(made_once, out, "--rounds", 100000))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(out.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    try:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert (len(gone), alive) == (2, [])
    finally:
        for child in children:
            if child.is_running():
                child.kill()


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["memslf"], "compare memslf: method.name: expected one of "),
        (
            ["memsfl", "vanilla:order=fifo"],
            "compare vanilla:order=fifo: method.order: expected an option of vanilla",
        ),
        (
            ["memsfl", "vanilla", "-o", "method.order=fifo"],
            "compare vanilla: method.order: expected an option of vanilla",
        ),
        (["memsfl", "-o", "method.name=vanilla"], "-o method.name: expected methods as words behind `compare`"),
        (["memsfl", "memsfl"], "compare: expected different methods, got memsfl twice"),
        (["memsfl:cut"], "compare memsfl:cut: expected METHOD:KEY=VALUE"),
        (["memsfl", "--target", "80"], "--target: expected a value of accuracy, above 0 and at most 1, got 80"),
        (["memsfl", "--metric", "bleu"], "--metric: expected one of accuracy, macro_f1, loss for classification"),
        (["memsfl", "--task", "causal-lm", "--metric", "accuracy"], "--metric: expected one of perplexity, loss"),
        (["memsfl", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["memsfl", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["memsfl", "splitlora:cut=9"], "compare splitlora:cut=9: method.cut: expected "),
        (["memsfl", "--rounds", "none"], "flags: train.rounds: expected a valid integer"),
    ],
)
def test_one_line_before_anything_runs(words: list[object], told: str, world: World) -> None:
    ran = run("compare", *world.classification(), *words)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {told}"), ran.err
    assert len(ran.err.splitlines()) == 1
    assert not world.out.exists()


def test_the_folder_of_another_comparison(compared: tuple[Path, Ran], made_once: World) -> None:
    out, _ = compared
    ran = run("compare", *flags(made_once, out, "--lr", 0.5))
    assert ran.code == 2
    assert ran.err.endswith("whose train.lr is 0.01, not 0.5. Use another --out.\n")


def test_no_method_is_a_usage_error(world: World) -> None:
    ran = run("compare", *world.classification())
    assert ran.code == 2
    assert "METHOD" in ran.err
