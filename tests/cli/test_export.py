"""`export` writes what other programs load, of a run that has ended, was stopped, or goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline

from commands import World, run, stopped_after_a_round
from cutlayer.errors import ConfigError, ModelError
from cutlayer.run.exported import push

UNEQUAL = ["--method", "legend", "-o", "method.first=1", "-o", "method.step=2", "-o", "train.save_every=1"]
FACTORS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def writer(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose causal LM was trained, at other ranks on every block; to be read only."""
    world = made_once.linked(tmp_path_factory.mktemp("writer"))
    ran = run("train", *world.causal_lm(), *UNEQUAL)
    assert (ran.code, ran.err) == (0, "")
    return world


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([[1, 9, 12, 33, 7]])).logits
    return found


def on(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def test_the_portable_adapter(writer: World, tmp_path: Path) -> None:
    ran = run("export", writer.out, "--adapter", "--out", tmp_path / "mine")
    assert (ran.code, ran.err) == (0, "")
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    own = json.loads((writer.out / "adapter" / "adapter_config.json").read_text())
    assert own["rank_pattern"], "the run's own has other ranks on other blocks"
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    theirs, ours = logits(on(writer.writer, tmp_path / "mine")), logits(on(writer.writer, writer.out / "adapter"))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert not torch.allclose(theirs, logits(AutoModelForCausalLM.from_pretrained(writer.writer)), atol=1e-3)
    for folder in (tmp_path / "mine", writer.out / "adapter"):
        assert {"tokenizer.json"} <= {path.name for path in (tmp_path / "mine").iterdir()}
        for path in folder.iterdir():
            text = path.read_bytes()
            assert not any(str(place).encode() in text for place in (tmp_path.parent, writer.folder.parent)), path
    assert "| method | `legend`" in (tmp_path / "mine" / "README.md").read_text()
    lost = run("export", tmp_path / "mine", "--merged", "--out", tmp_path / "whole")
    assert (lost.code, "no hub name" in lost.err, "--model" in lost.err) == (2, True, True)


def test_the_merged_model_and_what_others_do_with_it(writer: World, tmp_path: Path) -> None:
    ran = run("export", writer.out, "--merged", "--dtype", "fp32", "--out", tmp_path / "whole")
    assert (ran.code, ran.err) == (0, "")
    assert "checked against base + adapter on 8 held-out rows: largest difference of a logit" in ran.out
    merged = on(writer.writer, writer.out / "adapter").merge_and_unload()
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(merged), rtol=0, atol=1e-5
    )
    asked = run("generate", writer.out, "--prompt", "n1 n2", "--max-new-tokens", 4)
    ask = pipeline("text-generation", model=str(tmp_path / "whole"))
    [said] = ask("n1 n2", max_new_tokens=4, do_sample=False, return_full_text=False, add_special_tokens=False)
    assert said["generated_text"].split() == asked.out.split()
    again = run("generate", tmp_path / "whole", "--prompt", "n1 n2", "--max-new-tokens", 4)
    assert (again.code, again.out) == (0, asked.out)


def test_a_round_that_was_saved(writer: World, tmp_path: Path) -> None:
    assert run("export", writer.out, "--adapter", "--round", 1, "--out", tmp_path / "one").code == 0
    saved = load_file(writer.out / "adapters" / "round-1" / FACTORS)
    wide = load_file(tmp_path / "one" / FACTORS)
    assert all(torch.equal(wide[name][: len(value)], value) for name, value in saved.items() if ".lora_A." in name)
    ran = run("export", writer.out, "--adapter", "--round", 7, "--out", tmp_path / "seven")
    assert (ran.code, "expected adapters/round-7, got round-1, round-2" in ran.err) == (2, True)


def test_a_run_that_was_stopped_or_is_going_on(world: World, tmp_path: Path) -> None:
    assert stopped_after_a_round("train", *world.causal_lm(), *UNEQUAL).code == 130
    checkpoint = world.out / "checkpoint"
    half = world.out / ".checkpoint.tmp"
    half.mkdir()
    (half / "state.json").write_text("{")
    assert run("export", world.out, "--adapter", "--out", tmp_path / "now").code == 0
    assert run("export", world.out, "--adapter", "--round", 1, "--out", tmp_path / "one").code == 0
    assert (tmp_path / "now" / FACTORS).read_bytes() == (tmp_path / "one" / FACTORS).read_bytes()
    assert half.is_dir(), "what a run is writing is left alone"
    checkpoint.rename(checkpoint.with_name(".checkpoint.old"))  # the instant between two renames
    assert run("export", world.out, "--adapter", "--out", tmp_path / "again").code == 0
    assert (tmp_path / "now" / FACTORS).read_bytes() == (tmp_path / "again" / FACTORS).read_bytes()
    shutil.rmtree(checkpoint.with_name(".checkpoint.old"))
    ran = run("export", world.out, "--adapter", "--out", tmp_path / "none")
    assert (ran.code, "at least one round that is over" in ran.err) == (2, True)


def test_plain_pefts_adapter_too(writer: World, tmp_path: Path) -> None:
    plain = shutil.copytree(writer.out / "adapter", tmp_path / "plain")
    (plain / "cutlayer.json").unlink()
    path = plain / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(writer.writer)}))
    assert run("export", plain, "--adapter", "--out", tmp_path / "wide").code == 0
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(plain))
    torch.testing.assert_close(logits(on(writer.writer, tmp_path / "wide")), theirs, rtol=0, atol=1e-5)
    merged = run("export", plain, "--merged", "--out", tmp_path / "whole")
    assert (merged.code, "on a fixed text" in merged.out) == (0, True)


def test_a_classifier(trained: World, tmp_path: Path) -> None:
    ran = run("export", trained.out, "--adapter", "--out", tmp_path / "mine")
    assert (ran.code, "vLLM refuses" in ran.err) == (0, True)
    assert run("export", trained.out, "--merged", "--out", tmp_path / "whole").code == 0
    said = run("generate", trained.out, "--prompt", "why")
    assert (said.code, "writes no text" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "expected one of --merged and --adapter"),
        (["--merged", "--adapter"], "expected one of --merged and --adapter"),
        (["--merged", "--dtype", "int3"], "--dtype: expected one of"),
        (["--adapter", "--dtype", "bf16"], "expected it with --merged"),
        (["--adapter", "--push", "mine"], "expected OWNER/NAME"),
        (["--adapter", "--round", "1"], "adapters/round-1"),
    ],
)
def test_what_cannot_be(flags: list[str], said: str, trained: World, tmp_path: Path) -> None:
    ran = run("export", trained.out, *flags, "--out", tmp_path / "out")
    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken(trained: World, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("mine")
    ran = run("export", trained.out, "--adapter", "--out", tmp_path / "mine")
    assert (ran.code, "not there yet" in ran.err) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


class Hub:
    """A hub that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, name: str, **options: Any) -> None:
        self.asked.append((name, options))

    def upload_folder(self, **options: Any) -> str:
        self.asked.append(("upload", options))
        return "there"


def test_the_way_to_a_hub(trained: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    assert push(tmp_path, "me/mine", api=hub) == "there"
    assert hub.asked[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert hub.asked[1][1]["repo_id"] == "me/mine"
    assert hub.asked[1][1]["folder_path"] == str(tmp_path)
    with pytest.raises(ConfigError):
        push(tmp_path, "mine", api=hub)

    def refuses(self: HfApi, *_: Any, **__: Any) -> None:
        raise OSError("401 no token\nmore")

    monkeypatch.setattr(HfApi, "create_repo", refuses)
    with pytest.raises(ModelError, match="OSError: 401 no token"):
        push(tmp_path, "me/mine")
    monkeypatch.setattr(HfApi, "create_repo", hub.create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", hub.upload_folder)
    ran = run("export", trained.out, "--adapter", "--out", tmp_path / "mine", "--push", "me/mine", "--public")
    assert (ran.code, "pushed: there" in ran.out) == (0, True)
    assert hub.asked[-2][1]["private"] is False
    assert (tmp_path / "mine" / "README.md").read_text().count("# mine") == 1
