"""A whole run by its flags: what it says, what it leaves behind, and that it can be done again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from commands import World, run, stopped_after_a_round
from cutlayer.config import read_config
from cutlayer.methods.table import TABLE
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.card import read_card
from cutlayer.model.export import read_adapter
from cutlayer.model.settings import ModelSettings
from cutlayer.server.evaluate import evaluate


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_ends_with_the_devices_the_metrics_and_the_adapter(world: World) -> None:
    ran = run("train", *world.classification())
    assert (ran.code, ran.err) == (0, "")
    lines = ran.progress.splitlines()
    stages = ["starting", "reading the data", "counting what steps cost", "reading the model", "evaluating"]
    (learned,) = (line for line in lines if line.startswith("training data: "))
    assert learned.startswith("training data: 24 rows of ")
    assert learned.endswith(" cut off at 16, 0 dropped")
    signs_of_life = [line for line in lines if not line.startswith("round ") and re.search(r" s( gone)?$", line)]
    begun = [line for line in lines if line not in signs_of_life]  # a slow machine has some
    notices = ("tokenising ", "training data: ", "model ", "method: ", "trained: ", "leaves a device", "In split ", " ")
    said = [line.split("  ")[0] for line in begun if line.strip() and not line.startswith(notices)]
    assert said[: len(stages) + 1] == [*stages, "evaluating"], "before the first round, and at its end"
    assert [line for line in said if line.startswith("round ")] == ["round 1/2", "round 2/2"]
    machines, lines = (" slow", " quick", " server"), ran.out.splitlines()
    assert [line.split()[0] for line in begun if line.startswith(machines)] == ["slow", "quick"], "as understood"
    assert [line.split()[0] for line in lines if line.startswith(machines)] == ["slow", "quick", "server"]
    assert re.search(r"^accuracy \S+ -> \S+, macro_f1 \S+ -> \S+, loss \S+ -> \S+$", ran.out, re.MULTILINE)
    assert lines[-2:] == [f"adapter: {world.out / 'adapter'}", f"run folder: {world.out}"]


def test_what_kept_activations_save_is_said_and_they_are_gone_at_the_end(world: World) -> None:
    ran = run("train", *world.classification(), "--method", "splitfrozen", "--local-steps", 30)
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^kept activations saved \S+ GFLOP on devices and \S+ \S?i?B up$", ran.out, re.MULTILINE)
    summary = json.loads((world.out / "summary.json").read_text())
    devices = [device for row in rows(world.out / "metrics.jsonl") for device in row["devices"].values()]  # type: ignore[attr-defined]
    for name in ("saved_bytes", "saved_flops"):
        assert summary["totals"][name] == sum(device["facts"].get(name, 0) for device in devices) > 0
    assert not (world.out / "scratch").exists()


def test_quiet_prints_the_adapters_path_only(world: World) -> None:
    ran = run("train", *world.classification(), "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, f"{world.out / 'adapter'}\n", "")


def test_a_run_file_does_what_the_flags_do_and_flags_override_it(trained: World, tmp_path: Path) -> None:
    config = yaml.safe_load((trained.out / "config.yaml").read_text())
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({**config, "train": {**config["train"], "seed": 5}}))
    again = tmp_path / "again"
    assert run("train", run_file, "--seed", 0, "--out", again).code == 0
    assert files(again / "adapter") == files(trained.out / "adapter")


def test_the_config_is_complete(trained: World) -> None:
    config = yaml.safe_load((trained.out / "config.yaml").read_text())
    read = read_config(trained.out / "config.yaml")
    assert read.model_dump(mode="json") == config
    assert config["train"]["keep_moments"] is True, "defaults are written out"
    assert config["method"] == {"name": "memsfl", **TABLE["memsfl"].options}
    assert config["fleet"]["devices"][0]["name"] == "slow", "the fleet file is written out"
    assert (config["model"]["name"], config["data"]["path"]) == (
        str(trained.classifier.resolve()),
        str(trained.reviews.resolve()),
    )


def test_its_config_gives_the_same_adapter_from_elsewhere(
    world: World, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    relative = ["--model", "bert", "--data", "reviews", "--fleet", "fleet.yaml", "--out", "run"]
    assert run("train", *world.classification(), *relative).code == 0
    world.fleet.unlink()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert run("train", world.out / "config.yaml", "--out", "again").code == 0
    assert files(elsewhere / "again" / "adapter") == files(world.out / "adapter")


def test_the_run_folder_holds_what_it_promises(trained: World) -> None:
    out = trained.out
    assert {path.name for path in out.iterdir()} == {
        "about.json",
        "adapter",
        "checkpoint",
        "checkpoint.1",
        "config.yaml",
        "contributions.jsonl",
        "events.jsonl",
        "metrics.jsonl",
        "report.html",
        "report.svg",
        "started.json",
        "summary.json",
        "tensorboard",
    }
    assert [row["round"] for row in rows(out / "metrics.jsonl")] == [0, 1]
    assert {row["what"] for row in rows(out / "events.jsonl")} == {"forward", "backward", "step", "upload", "download"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() == {
        "metrics",
        "metrics_before",
        "totals",
        "wall_seconds",
        "peak_memory_bytes",
        "peak_cuda_bytes",
        "versions",
        "method",
        "seed",
        "blocks",
        "run",
        "refusals",
        "contributions",
        "exported_round",
        "ended_early",
    }
    assert (summary["exported_round"], summary["ended_early"]) == (1, False)
    assert summary["metrics"].keys() == {"accuracy", "macro_f1", "loss"}
    assert summary["totals"]["steps"] == 2 * 2 * 2
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_a_method_option_reaches_the_method(world: World) -> None:
    assert run("train", *world.classification(), "-o", "method.cut=2", "-o", "method.order=fifo").code == 0
    facts = json.loads((world.out / "checkpoint" / "state.json").read_text())["facts"]
    assert facts["run"]["cuts"] == {"slow": 2, "quick": 2}


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_plain_peft_gives_the_logits_of_the_run(task: str, world: World) -> None:
    flags = world.classification() if task == "classification" else world.causal_lm()
    folder = world.classifier if task == "classification" else world.writer
    assert run("train", *flags).code == 0
    card = read_card(world.out / "adapter")
    lora = LoraSettings(8, 16, targets=() if task == "classification" else ("all-linear",))
    settings = ModelSettings(str(folder), task, len(card.labels), card.pad_id, lora=lora)  # type: ignore[arg-type]
    base = Base(settings)
    whole = base.whole()
    whole.use(read_adapter(world.out / "adapter", base))
    maker, more = (
        (AutoModelForSequenceClassification, {"num_labels": len(card.labels)})
        if task == "classification"
        else (AutoModelForCausalLM, {})
    )
    plain = PeftModel.from_pretrained(maker.from_pretrained(folder, **more), world.out / "adapter").eval()
    inputs = AutoTokenizer.from_pretrained(folder)(["n1 good n2", "n5 n6 n7"], return_tensors="pt")
    whole.model.eval()
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, whole.model(**inputs).logits)


def test_a_causal_lm_run_reports_perplexity(world: World) -> None:
    ran = run("train", *world.causal_lm())
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^loss \S+ -> \S+, perplexity \S+ -> \S+$", ran.out, re.MULTILINE)
    summary = json.loads((world.out / "summary.json").read_text())
    assert summary["metrics"].keys() == {"loss", "perplexity", "tokens"}
    assert summary["metrics"]["loss"] < summary["metrics_before"]["loss"]


# ------------------------------------------------------------------ going on


def test_resume_ends_where_the_whole_run_ends(trained: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = stopped_after_a_round("train", trained.out / "config.yaml", "--out", out)
    assert (ran.code, ran.err) == (130, f"interrupted: go on with cutlayer train --resume {out}\n")
    assert not (out / "adapter").exists()
    moved = out.rename(tmp_path / "moved")
    ran = run("train", "--resume", moved)
    assert (ran.code, ran.err) == (0, "")
    assert [line.split("  ")[0] for line in ran.progress.splitlines() if line.startswith("round ")] == ["round 2/2"]
    assert files(moved / "adapter") == files(trained.out / "adapter")
    assert files(moved)["events.jsonl"] == files(trained.out)["events.jsonl"]


def test_a_run_that_is_done_can_be_resumed(trained: World) -> None:
    before = files(trained.out / "adapter")
    assert run("train", "--resume", trained.out).code == 0
    assert files(trained.out / "adapter") == before


def test_ctrl_c_says_how_to_go_on(world: World) -> None:
    command = [sys.executable, "-m", "cutlayer", "train", *map(str, world.classification()), "--rounds", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line.startswith("round 1/") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted: go on with cutlayer train --resume {world.out}"
    assert (world.out / "checkpoint" / "state.json").exists()


def test_local_only_ends_with_an_adapter_for_every_device(world: World) -> None:
    flags = [*world.classification(), "--method", "local_only", "--rounds", 2]
    with mock.patch("cutlayer.run.run.evaluate", wraps=evaluate) as evaluated:
        assert run("train", *flags, "--quiet").code == 0
    assert evaluated.call_count == 1 + 2 * 2, "what the last round's evaluation said is not asked again"
    folder = world.out
    names = sorted(path.name for path in (folder / "adapters").iterdir())
    assert names == ["quick", "slow"]
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    own = []
    for path in (folder / "adapters" / "quick", folder / "adapters" / "slow", folder / "adapter"):
        ran = run("evaluate", path, "--data", world.reviews, "--json")
        own.append(json.loads(ran.out)["loss"])
    assert metrics["loss"] == pytest.approx((own[0] + own[1]) / 2, rel=1e-5)
    assert own[2] == min(own[:2])


def test_a_sample_of_the_validation_rows(world: World) -> None:
    """It is said on the screen and in the card; a run without it judges by all."""
    ran = run("train", *world.classification(), "--eval-rows", 5)
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^evaluating on 5 of \d+ validation rows  0/5$", ran.progress, re.MULTILINE)
    assert json.loads((world.out / "adapter" / "cutlayer.json").read_text())["eval_rows"] == 5


def test_a_tracker_is_told_of_every_round_of_a_run_that_was_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, from the flag to a library, which is a file of the test's."""
    said = tmp_path / "said.txt"
    (tmp_path / "wandb.py").write_text(
        f"class Settings:\n    def __init__(self, **settings): pass\n"
        f"def init(**asked):\n"
        f"    say = lambda *what: open({str(said)!r}, 'a').write(' '.join(map(str, what)) + chr(10))\n"
        f"    say('run', asked['id'])\n"
        f"    log = lambda self, scalars, step: say('step', step, sorted({{tag.split('/')[0] for tag in scalars}}))\n"
        f"    finish = lambda self, exit_code: say('exit', exit_code)\n"
        f"    return type('Run', (), {{'log': log, 'finish': finish, 'summary': {{}}}})()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stopped_after_a_round("train", *world.classification(), "--report-to", "wandb")
    assert run("train", "--resume", world.out).code == 0
    groups = ["fleet", "time", "train", "validation"]
    assert said.read_text().splitlines() == [
        f"run {json.loads((world.out / 'trackers.json').read_text())['id']}",
        f"step 1 {groups}",  # which was on the disk, and could not be told
        f"step 2 {groups}",
        "exit 0",
    ]
    assert not (world.out / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutlayer.report.trackers.reports.importlib.util.find_spec", lambda name: None)
    ran = run("train", *world.classification(), "--report-to", "mlflow")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "pip install 'cutlayer[mlflow]'" in ran.err
    assert not world.out.exists()


def test_to_whom_a_run_reports_decides_nothing_of_it(world: World) -> None:
    assert run("train", *world.classification(), "--report-to", "none").code == 0
    reported = files(world.out)
    assert not any(name.startswith("tensorboard") for name in reported)
    assert run("train", *world.classification(), "--out", world.folder / "again").code == 0
    told = [json.loads((world.folder / name / "summary.json").read_text())["run"] for name in ("run", "again")]
    assert told[0] == told[1]
    assert files(world.out / "adapter") == files(world.folder / "again" / "adapter")
