"""The papers' claims: what is made of the figures of a comparison."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import claims
from cutlayer import load_finetuned, simulate
from cutlayer.config import read_config
from cutlayer.fleet.profile import load_fleet
from cutlayer.report.json_lines import JsonLines
from cutlayer.report.round_row import round_row
from cutlayer.report.text_metrics import exact_match
from cutlayer.run.inputs import prepare
from cutlayer.testing.tiny import save_inputs
from cutlayer.types import StepRecord


def figures(
    label: str, *, accuracy: float, seconds: float, sooner: float | None = None, folders: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A method's entry in compare.json, as far as it is read, and the folders of its runs."""
    spent = {key: {"mean": seconds} for key in ("virtual_seconds", "bytes", "flops")}
    return {
        "label": label,
        "final": {name: {"mean": accuracy, "spread": None} for name in ("accuracy", "perplexity")},
        "totals": spent,
        "to_target": None if sooner is None else {"virtual_seconds": {"mean": sooner}, "bytes": {"mean": sooner}},
        "server_bytes": int(seconds * 100),
        "device_bytes": int(seconds * 10),
        "folders": folders,
        "bytes_up": {"mean": 200 * seconds},
        "bytes_down": {"mean": 100 * seconds},
        "facts": {"calls": 99, "lost": 1, "server_backward_flops": 8 * seconds, "repeated_bytes": 50 * (seconds - 1)},
    }


def run_folder(folder: Path, *cuts: int) -> Path:
    """A run of a device that takes two seconds for a block and one for the network, with these cuts in its rounds."""
    like = StepRecord(0, "pi", 2, 8, 8, 1.0, 0.0, 2.0, 0.5, 10, 10, flops=1.0)
    rows, end = JsonLines(folder / "metrics.jsonl"), 0.0
    folder.mkdir(parents=True)
    for number, cut in enumerate(cuts):
        record = replace(like, round=number, cut=cut, busy_seconds=4.0 * cut)
        end += record.busy_seconds + record.network_seconds + record.waiting_seconds
        facts = {"wall_seconds": 1.0, "server_memory_bytes": 1, "validation": {}}
        rows.append([round_row([record], round=number, virtual_seconds=end, **facts)])  # type: ignore[arg-type]
    (folder / "summary.json").write_text(json.dumps({"peak_memory_bytes": 2**30}))
    return folder


def test_savings_and_speed_ups() -> None:
    system = figures("a", accuracy=0.8, seconds=5.0, sooner=2.0)
    other = figures("b", accuracy=0.5, seconds=20.0, sooner=5.0)
    assert claims.less(system, other, "flops") == "-75.0 %"
    assert claims.less(other, system, "bytes") == "+300.0 %"
    assert claims.speedup(system, other) == "2.50 x"
    assert claims.speedup(system, figures("c", accuracy=0.1, seconds=1.0)) == "not reached by the other"
    assert claims.speedup(figures("c", accuracy=0.1, seconds=1.0), system) == "not reached by the system"


@pytest.mark.parametrize("system", sorted(claims.CLAIMS))
def test_every_system_has_lines_against_every_other(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "at_home", lambda _folder: {"pi": 0.5})
    monkeypatch.setattr(claims, "adapter_of", lambda _folder: b"")
    figure, trials = claims.CLAIMS[system]
    folder = run_folder(tmp_path / "run", 1, 2)
    for trial in trials:
        entries = [figures(word, accuracy=0.5, seconds=1.0, sooner=1.0, folders=(folder,)) for word in trial.methods]
        lines = figure(trial, entries)
        assert {word for word in trial.methods[1:] if any(word in line.against for line in lines)} == {
            *trial.methods[1:]
        }
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names), "each trial has a folder of its own"
    assert not [name for name in names if "/" in name]


def test_the_gain_of_splitfrozen_is_relative() -> None:
    figure, (trial, *_) = claims.CLAIMS["splitfrozen"]
    system = figures("splitfrozen", accuracy=0.9, seconds=1.0)
    first, *_ = figure(trial, [system, figures("fedlora", accuracy=0.6, seconds=2.0)])
    assert first.ours == "+50.0 % (0.900 / 0.600)"


def test_steps_are_held_against_the_threshold_of_the_system_and_its_seed(tmp_path: Path) -> None:
    """The system learns that one block is enough: 3 s a step; its first round, with two blocks, took 5 s."""
    system = figures("reindsplit", accuracy=0.5, seconds=1.0, folders=(run_folder(tmp_path / "a", 2, 3, 1, 1),))
    fixed = figures("reindsplit:cut=3", accuracy=0.5, seconds=1.0, folders=(run_folder(tmp_path / "b", 3, 3, 3, 3),))
    figure, (trial, *_) = claims.CLAIMS["reindsplit"]
    lines = {line.claim: line.ours for line in figure(trial, [system, fixed])}
    assert lines == {
        "a round": "9.50 s / 14.50 s (6.50 s / 14.50 s)",
        "steps over the latency threshold": "25.0% / 100.0% (0.0% / 100.0%)",
        "steps that starve their device": "50.0% / 0.0% (100.0% / 0.0%)",
        "blocks on a device": "1.75 / 3.00 (1.00 / 3.00)",
    }


def test_a_fleet_of_its_own_is_written_where_runs_are_kept(tmp_path: Path) -> None:
    for name in claims.FLEETS:
        fleet = load_fleet(claims.fleet_file(name, tmp_path))
        assert fleet.name == name
    assert any(len(device.modes) > 1 for device in load_fleet(str(tmp_path / "field-ten.yaml")).devices)


def test_a_broadcast_is_counted_once() -> None:
    figure, (trial,) = claims.CLAIMS["epsl"]
    psl, shared = figures("a", accuracy=0.5, seconds=1.0), figures("b", accuracy=0.6, seconds=1.5)
    backward, received, sent, accuracy = figure(trial, [psl, shared])
    assert (backward.ours, received.ours) == ("x 1.500", "x 1.500")
    assert sent.ours == "x 1.250"
    assert accuracy.ours == "+10.0 +- 0.0 (0.600 / 0.500)"


def test_what_a_language_model_says_and_took(tmp_path: Path) -> None:
    """Two steps in each of two rounds of a second; of seeds the spread, and metrics that the trial has."""
    folder = run_folder(tmp_path / "run", 1, 1)
    system, other = (figures(word, accuracy=2.0, seconds=1.0, folders=(folder,)) for word in ("a", "b"))
    other["final"] = {
        "perplexity": {"mean": 3.0, "spread": 0.25},
        "rouge_l": {"mean": 0.5, "spread": None},
    }
    system["final"]["rouge_l"] = {"mean": 0.75, "spread": None}
    figure, (trial,) = claims.CLAIMS["splitlora_chat"]
    lines = {(line.claim, line.against): line for line in figure(trial, [system, other])}
    assert lines["final perplexity", "b, meanings"].ours == "2.000 / 3.000 +- 0.250"
    assert lines["final perplexity", "b, meanings"].paper != "-"
    assert lines["final rouge_l", "b, meanings"].ours == "0.750 / 0.500"
    speeds = [line.ours for line in lines.values() if line.claim.startswith("steps/s")]
    assert speeds == ["2.00, 1024 MiB"] * 2
    assert not any("exact_match" in claim for claim, _ in lines)


def test_a_round_that_was_evaluated_says_nothing_of_the_speed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 1)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").unlink()
    JsonLines(folder / "metrics.jsonl").append([row | {"validation": {"loss": 1.0}} for row in rows])
    assert claims.here({"folders": [folder]}) == "-, 1024 MiB"


def test_what_is_built_in_needs_no_folder_and_chats_are_of_the_same_one(tmp_path: Path) -> None:
    _, (maths,) = claims.CLAIMS["splitfrozen_chat"]
    _, (places,) = claims.CLAIMS["splitlora_chat"]
    (tmp_path / "work" / "data" / "gsm8k").mkdir(parents=True)
    assert claims.source_of(places, tmp_path, tmp_path / "work") == "builtin:meanings"
    assert claims.source_of(maths, tmp_path, tmp_path / "work") == str(tmp_path / "work" / "data" / "gsm8k")


@pytest.mark.parametrize("system", [name for name in sorted(claims.CLAIMS) if name.endswith("_chat")])
def test_the_flags_of_a_chat_model_are_a_config(system: str) -> None:
    _, (trial,) = claims.CLAIMS[system]
    words = [*claims.COLUMNS[trial.data], *shlex.split(trial.quick)]
    overrides = [value for flag, value in pairwise(words) if flag == "-o"]
    config = read_config(None, ["data.task=causal-lm", *overrides])
    assert (config.train.metric_rows, config.train.new_tokens) == (2, 4)
    assert config.train.metrics == (("exact_match",) if "gsm8k" in trial.data else ("rouge_l",))
    assert exact_match(["so #### 4"], ["#### 4"], pattern=config.train.answer_pattern) == float("gsm8k" in trial.data)


def test_facts_are_summed_over_a_run_and_averaged_over_runs(tmp_path: Path) -> None:
    for run, numbers in (("one", (1, 2)), ("two", (3, 4))):
        (tmp_path / run).mkdir()
        rows = [{"devices": {"a": {"facts": {"bytes": number}}, "b": {"facts": {"ranks": [1]}}}} for number in numbers]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert claims.facts_of(tmp_path, {"runs": [{"folder": "one"}, {"folder": "two"}]}) == {"bytes": 5.0}


def test_at_home_a_device_is_asked_what_it_has(tmp_path: Path) -> None:
    """Its own adapter, and of the validation rows those of its own classes; a shared adapter where there is one."""
    here = save_inputs(tmp_path, rows=24)
    data = {"path": str(here / "data"), "max_length": 16, "spread": "one-class"}
    common: dict[str, Any] = {"model": str(here / "model"), "data": data, "fleet": "memsfl-six"}
    for method in ("local_only", "fedlora"):
        train = {"rounds": 1, "local_steps": 1, "batch_size": 4}
        folder = simulate(**common, method=method, train=train, out=tmp_path / method).folder
        inputs = prepare(read_config(folder / "config.yaml"))
        found = claims.at_home(folder)
        assert list(found) == [device.name for device in inputs.fleet.devices]
        for device, counts in inputs.label_counts.items():
            own = folder / "adapters" / device
            known = claims.recall(load_finetuned(own if method == "local_only" else folder / "adapter"), inputs)
            (mine,) = [label for label, count in enumerate(counts) if count]
            assert found[device] == known[mine]


def test_recall_is_of_each_class(tmp_path: Path) -> None:
    here = save_inputs(tmp_path, rows=24)
    values = {"model.name": str(here / "model"), "data.path": str(here / "data"), "data.max_length": 16}
    inputs = prepare(read_config(None, values=values))

    class Second:
        """Says the second class of everything."""

        def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
            logits_BC = torch.zeros(len(inputs["input_ids"]), 3)
            logits_BC[:, 1] = 1
            return SimpleNamespace(logits=logits_BC)

    assert claims.recall(Second(), inputs).tolist() == [0.0, 1.0, 0.0]


def test_bytes_of_a_round_are_a_devices(tmp_path: Path) -> None:
    figure, (trial, *_) = claims.CLAIMS["fedkseed"]
    folder = run_folder(tmp_path / "run", 1, 2)
    entries = [figures(word, accuracy=0.5, seconds=1.0, folders=(folder,)) for word in ("fedkseed", "fedlora")]
    first, *_ = figure(trial, entries)
    assert first.ours == "20 / 20 bytes"


def test_accuracy_is_that_of_the_last_evaluation_by_then(tmp_path: Path) -> None:
    """Two runs, evaluated after 2 s and 4 s, and after 3 s."""
    folders = []
    for number, evaluated in enumerate(({2.0: 0.5, 4.0: 0.75}, {3.0: 0.25})):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        rows = [
            {"virtual_seconds": end, "validation": {"accuracy": evaluated[end]} if end in evaluated else {}}
            for end in (1.0, 2.0, 3.0, 4.0)
        ]
        (folders[-1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = figures("a", accuracy=0.9, seconds=4.0, folders=tuple(folders))
    found = [claims.accuracy_by(one, seconds) for seconds in (1.9, 2.0, 3.5, 4.0)]
    assert found == pytest.approx([0.0, 0.25, 0.375, 0.5])
    assert claims.round_seconds(folders[0], half=False) == [1.0] * 4
