"""Law 6: a fleet that dials in over gRPC trains the adapter of the simulated one, bit for bit."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from cutlayer.config import read_config
from cutlayer.fleet.profile import DeviceProfile, load_fleet
from cutlayer.gate import hub
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.model.card import read_card
from cutlayer.report.progress import NoProgress
from cutlayer.run.desk import RunHost
from cutlayer.run.inputs import prepare, prepare_server, write_shares
from cutlayer.run.run import Outcome
from cutlayer.run.served import serve
from cutlayer.testing import tiny
from cutlayer.wire.messages import Ready
from real import FLEET, one_thread, served, simulated, values_for
from turns import by_turns


def bytes_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("overlap", [True, False])
def test_micro_batches_over_a_real_wire(overlap: bool, inputs: Path, tmp_path: Path) -> None:
    """With two of them on their way at a time or one: the adapter of the simulated run."""
    values = values_for(inputs, train__micro_batches=3, train__overlap=overlap)
    other = values_for(inputs, train__micro_batches=3, train__overlap=not overlap)
    assert bytes_of(served(values, tmp_path / "real")) == bytes_of(simulated(other, tmp_path / "simulated"))


def test_what_devices_round_at_random_is_drawn_from_the_runs_seed(inputs: Path, tmp_path: Path) -> None:
    """The adapter of the simulated run, whose seed is not the usual one, and whose model lies where theirs does not."""
    changes = {"method__name": "fedlora", "wire__adapters": "sparse:0.5:8", "train__seed": 3}
    real = served(values_for(inputs, **changes), tmp_path / "real")
    elsewhere = values_for(shutil.copytree(inputs, tmp_path / "elsewhere"), **changes)
    assert bytes_of(real) == bytes_of(simulated(elsewhere, tmp_path / "simulated"))


def test_labels_at_home_over_a_real_wire(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter of the simulated run, and of the one with labels on the server; not even their counts are told."""
    told: list[tuple[int, ...]] = []
    profile = RunHost.profile

    def noted(desk: RunHost, ready: Ready) -> DeviceProfile:
        told.append(ready.label_counts)
        return profile(desk, ready)

    monkeypatch.setattr(RunHost, "profile", noted)
    home, away = (values_for(inputs, method__labels=labels, method__cut=1) for labels in ("device", "server"))
    expected = bytes_of(simulated(away, tmp_path / "simulated"))
    assert bytes_of(served(home, tmp_path / "real")) == expected
    assert told == [(), ()]
    assert bytes_of(served(away, tmp_path / "away")) == expected
    assert all(sum(counts) > 0 for counts in told[2:])


SERVED = by_turns(["memsfl", "splitfrozen", "fedlora", "sl", "flora", "prge", "gan_hfsl", "epsl"], one_of=2)


@pytest.mark.parametrize("method", list(SERVED))
def test_the_adapter_of_the_simulated_run(method: str, inputs: Path, tmp_path: Path) -> None:
    values = values_for(inputs, method__name=method)
    assert bytes_of(served(values, tmp_path / "real")) == bytes_of(simulated(values, tmp_path / "simulated"))


def test_a_cut_that_is_given_is_learnt_from_no_time(inputs: Path, tmp_path: Path) -> None:
    """ReinDSplit with one action: nothing is left to measured times, and the adapter is that of the simulated run."""
    values = values_for(inputs, method__name="reindsplit", method__cut=1)
    assert bytes_of(served(values, tmp_path / "real")) == bytes_of(simulated(values, tmp_path / "simulated"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedsl", {"prune": 0.5, "refresh": 1}),
        pytest.param("hsplitlora", {"fraction": 0.5, "cut": 1}, marks=pytest.mark.slow),  # one at a time
    ],
)
def test_what_plans_say_by_clauses_is_done_by_real_devices(
    method: str, options: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    """Channels and roundings drawn on both ends, units left out and taken back; modules weighed, ranks of their own."""
    own = {f"method__{name}": value for name, value in options.items()}
    values = values_for(inputs, method__name=method, lora__targets=["all-linear"], **own)
    assert bytes_of(served(values, tmp_path / "real")) == bytes_of(simulated(values, tmp_path / "simulated"))


def test_chats_are_written_alike_on_devices_that_have_another_template(tmp_path: Path) -> None:
    """Devices need no more of the data than they are told: its columns, its template, its system turn."""
    model = tiny.save_tiny_model("llama", "causal-lm", tmp_path / "model")
    tiny.save_tiny_tokenizer(model, "{{ raise_exception('the one that came with the model') }}")
    (tmp_path / "template.jinja").write_text(tiny.CHAT_TEMPLATE)
    for name, rows in (("train", 24), ("validation", 8)):
        tiny.write_jsonl(tmp_path / "data" / f"{name}.jsonl", tiny.chats(rows, seed=rows))
    template = str(tmp_path / "template.jinja")
    chats = {"data__task": "causal-lm", "data__max_length": 8, "data__system": "n1", "data__template": template}
    values = values_for(tmp_path, lora__targets=["q_proj"], **chats)
    real = served(values, tmp_path / "real", model="server")
    modelled = simulated(values, tmp_path / "simulated")
    assert bytes_of(real) == bytes_of(modelled)
    kept = [path.read_text() for path in (tmp_path / "real" / "devices").rglob("chat_template.jinja")]
    assert len(kept) == 2
    assert all("raise_exception" in text for text in kept)
    cards = [read_card(outcome.adapter) for outcome in (real, modelled)]
    assert cards[0] == cards[1]
    assert (cards[0].template, cards[0].system, cards[0].separator) == (tiny.CHAT_TEMPLATE, "n1", None)
    assert cards[0].columns == {"messages": "messages"}


def test_devices_go_from_one_run_to_the_next(inputs: Path, tmp_path: Path) -> None:
    """With the folder that they have, and back to the first one."""
    for out, seed in (("first", 0), ("second", 1), ("again", 0)):
        values = values_for(inputs, train__seed=seed)
        there = served(values, tmp_path / out, folders=tmp_path / "devices")
        assert bytes_of(there) == bytes_of(simulated(values, tmp_path / f"{out} simulated"))


def test_a_server_that_comes_back_after_its_last_round_waits_for_nobody(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a simulated fault: its devices had been told that the run is over, and it waited for them for ever."""
    monkeypatch.setattr(hub, "LINGER_SECONDS", 0.1)
    values = values_for(inputs)
    before = served(values, tmp_path / "run")
    expected = bytes_of(before)
    shutil.rmtree(before.adapter)
    config = prepare_server(read_config(tmp_path / "run" / "config.yaml"))
    door = GrpcDoor("127.0.0.1:0", Admission(None), None, lambda _: None)

    async def again() -> Outcome:
        async with asyncio.timeout(30.0):
            return await serve(
                config, load_fleet(FLEET), NoProgress(), door, min_devices=2, resume=True, machines=one_thread()
            )

    assert bytes_of(asyncio.run(again())) == expected


def test_a_server_that_is_stopped_while_it_says_farewell_lets_nobody_stay(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a simulated fault: its connections stood, and their devices waited for it for ever."""
    values = {**values_for(inputs), "out": str(tmp_path / "run")}
    _, config = write_shares(prepare(read_config(None, values=values)), tmp_path / "shares")

    class Door:
        is_open = False

        async def open(self, hub: hub.Hub) -> None:  # noqa: ARG002
            self.is_open = True

        async def close(self) -> None:
            self.is_open = False

        def standing(self, device: str) -> None: ...

    async def stopped_twice() -> bool:
        waiting, parting, door = asyncio.Event(), asyncio.Event(), Door()

        async def wait_for(*_: object) -> None:
            waiting.set()
            await asyncio.Event().wait()

        async def farewell(*_: object) -> None:  # to a device that does not listen
            parting.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(hub.Hub, "wait_for", wait_for)
        monkeypatch.setattr(hub.Hub, "farewell", farewell)
        serving = asyncio.ensure_future(serve(prepare_server(config), load_fleet(FLEET), NoProgress(), door))
        await waiting.wait()
        assert door.is_open
        serving.cancel()
        await parting.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return door.is_open

    assert not asyncio.run(stopped_twice())


def test_a_server_goes_on_from_any_checkpoint_that_it_keeps_and_so_do_its_devices(inputs: Path, tmp_path: Path) -> None:
    """The newer ones are torn; devices have kept what they were then."""
    values = values_for(inputs, train__rounds=4, wire__adapters="topk:0.5")
    expected = bytes_of(simulated(values, tmp_path / "simulated"))
    run = tmp_path / "real"
    served(values, run)
    for torn in (1, 2):
        for name in ("checkpoint", "checkpoint.1")[:torn]:
            (run / name / "tensors.safetensors").write_bytes(b"")
        shutil.rmtree(run / "adapter")
        shutil.rmtree(run / "shares")
        again = served({**values}, run, resume=True)
        assert [row["round"] for row in again.rows] == [0, 1, 2, 3]
        assert bytes_of(again) == expected
