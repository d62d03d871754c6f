"""`evaluate` judges as the run did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from commands import World, run
from cutlayer.testing import tiny


def last_metrics(out: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    return metrics


def test_it_agrees_with_the_run(trained: World) -> None:
    ran = run("evaluate", trained.out / "adapter", "--data", trained.reviews, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == last_metrics(trained.out)


def test_a_small_table_says_the_same(trained: World) -> None:
    ran = run("evaluate", trained.out / "adapter", "--data", trained.reviews)
    assert (ran.code, ran.err) == (0, "")
    shown = dict(line.split() for line in ran.out.splitlines() if "." in line)
    assert shown == {name: f"{value:.4f}" for name, value in last_metrics(trained.out).items()}


def test_a_causal_lm_too_in_batches_of_another_size(world: World) -> None:
    assert run("train", *world.causal_lm(), "--quiet").code == 0
    ran = run("evaluate", world.out / "adapter", "--data", world.sums, "--json", "--batch-size", 5)
    assert json.loads(ran.out) == pytest.approx(last_metrics(world.out), rel=1e-5)
    assert "tokens" in json.loads(ran.out)


def test_the_training_rows_or_a_file_of_any_rows(trained: World) -> None:
    adapter = trained.out / "adapter"
    train = run("evaluate", adapter, "--data", trained.reviews, "--split", "train", "--json").out
    file = run("evaluate", adapter, "--data", trained.reviews / "train.jsonl", "--json").out
    validation = run("evaluate", adapter, "--data", trained.reviews, "--split", "validation", "--json").out
    assert train == file
    assert json.loads(validation) == last_metrics(trained.out) != json.loads(train)


def test_columns_and_the_base_may_have_moved(trained: World, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained.reviews / "validation.jsonl").read_text().splitlines()]
    renamed = tiny.write_jsonl(tmp_path / "more.jsonl", [{"body": r["text"], "stars": r["label"]} for r in rows])
    moved = shutil.copytree(trained.classifier, tmp_path / "moved")
    flags = ["--text", "body", "--label", "stars", "--model", moved, "--json"]
    ran = run("evaluate", trained.out / "adapter", "--data", renamed, *flags)
    assert json.loads(ran.out) == last_metrics(trained.out)


@pytest.fixture(scope="module")
def writer(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with an adapter of the upper blocks alone, which PEFT is told module by module; to be read only."""
    world = made_once.linked(tmp_path_factory.mktemp("writer"))
    saved = ["--method", "splitfrozen", "-o", "train.save_every=1", "--quiet"]
    assert run("train", *world.causal_lm(), *saved).code == 0
    targets = json.loads((world.out / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert all(".layers." in target for target in targets)
    return world


def test_an_adapter_of_some_blocks_alone(writer: World) -> None:
    ran = run("evaluate", writer.out / "adapter", "--data", writer.sums, "--json")
    assert json.loads(ran.out) == pytest.approx(last_metrics(writer.out), rel=1e-5)


def test_a_run_a_round_of_it_and_what_was_exported(writer: World, tmp_path: Path) -> None:
    """All that `generate` takes, `evaluate` takes too, and finds the same."""
    data = ["--data", writer.sums, "--json"]
    whole = json.loads(run("evaluate", writer.out, *data).out)
    assert whole == pytest.approx(last_metrics(writer.out), rel=1e-5)
    first = json.loads((writer.out / "metrics.jsonl").read_text().splitlines()[0])["validation"]
    assert json.loads(run("evaluate", writer.out, "--round", 1, *data).out) == pytest.approx(first, rel=1e-5)
    for kind, more in (("--adapter", ["--model", writer.writer]), ("--merged", [])):
        dtype = ["--dtype", "fp32"] if kind == "--merged" else []
        assert run("export", writer.out, kind, *dtype, "--out", tmp_path / kind[2:]).code == 0
        found = json.loads(run("evaluate", tmp_path / kind[2:], *more, *data).out)
        assert found == pytest.approx(whole, rel=1e-5), kind


def test_plain_pefts_adapter_says_nothing_of_how_texts_are_read(writer: World, tmp_path: Path) -> None:
    plain = shutil.copytree(writer.out / "adapter", tmp_path / "plain")
    (plain / "cutlayer.json").unlink()
    ran = run("evaluate", plain, "--data", writer.sums, "--model", writer.writer)
    assert (ran.code, "got plain PEFT's" in ran.err) == (2, True)
