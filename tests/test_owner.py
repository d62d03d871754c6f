"""Limits of a device's owner, against servers that ask for more: over a wire, with a real device behind it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from cutlayer.config import RunConfig, read_config
from cutlayer.device.limits import Limits
from cutlayer.device.probe import Probed
from cutlayer.errors import Declined, JoinError
from cutlayer.fleet.clock import run_virtual
from cutlayer.joining import Joining, join
from cutlayer.model.fingerprint import fingerprint
from cutlayer.model.source import ModelFiles
from cutlayer.testing import tiny
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier
from cutlayer.transport.handshake import hear, say
from cutlayer.transport.packets import Kind, unpack
from cutlayer.transport.sent import Shelf
from cutlayer.transport.session import Session, Standing
from cutlayer.types import DevicePlan
from cutlayer.wire.frames import decode
from cutlayer.wire.messages import (
    Answer,
    Ask,
    Assignment,
    Hello,
    Judge,
    Ready,
    Stand,
    Welcome,
)
from real import inline, served, simulated, values_for

LIFE = "life-1"
CLASSES = tuple(sorted(tiny.CLASSES))
ECHO = torch.zeros(2**20, dtype=torch.uint8)


class Watching:
    """The server's end of a carrier, which notes what arrives.

    Attributes:
      packets: the kind of each packet, and the type of a handshake's message.
      words: of a goodbye.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self.packets, self.words = list[Any](), ""

    intact = True

    async def send(self, packet: bytes) -> None:
        await self._carrier.send(packet)

    async def receive(self) -> bytes:
        arrived = await self._carrier.receive()
        packet = unpack(arrived, check=False)
        if packet.kind in (Kind.GOODBYE, Kind.DECLINED):
            self.words = bytes(packet.body).decode()
        self.packets.append(
            type(decode(packet.body, max_bytes=2**22)) if packet.kind is Kind.HANDSHAKE else packet.kind
        )
        return arrived

    def close(self) -> None:
        self._carrier.close()

    @property
    def of_data(self) -> int:
        """Frames of rounds: all that could hold something of a sample."""
        return self.packets.count(Kind.DATA)


class Hostile:
    """A server that lets a device in and then says what it likes.

    Args:
      folder: With a model and data, and room for the device's folder.
      says: Of the run's config, what it says; and the shape.
      asks: What it sends once the device is ready.
    """

    def __init__(self, inputs: Path, folder: Path, says: dict[str, Any], asks: list[Assignment | Judge]) -> None:
        shape = says.pop("shape", "split")
        values = values_for(inputs, **says)
        self.config: RunConfig = read_config(None, values={**values, "out": str(folder / "run")})
        digest = fingerprint(ModelFiles(self.config.model.name, None)).text
        labels = CLASSES if self.config.data.task == "classification" else ()
        self.welcome = Welcome("run", LIFE, "pi", 0, self.config.model_dump_json(), labels, digest, shape)
        self._folder, self._asks = folder, asks
        self.data = str(inputs / "data")
        self.ends = list[Watching]()
        self.told = list[str]()

    async def dial(self, _address: str = "") -> Carrier:
        mine, theirs = modelled_carriers(0.01)
        self.ends.append(Watching(theirs))
        self._serving = asyncio.ensure_future(self._serve(self.ends[-1]))
        return mine

    async def _serve(self, carrier: Watching) -> None:
        try:
            assert isinstance(await hear(carrier), Hello)
            await say(carrier, self.welcome)
            while not isinstance(message := await hear(carrier), Ready):
                assert isinstance(message, Ask)
                await say(carrier, Answer(message.body if message.body is not None else ECHO[: message.length]))
            session = Session(
                LIFE,
                limit_bytes=lambda: 2**26,
                incoming=Budget(2**28),
                outgoing=Budget(2**28),
                shelf=Shelf(self._folder, 2**28),
            )
            await say(carrier, Stand(LIFE, 0, 0))
            attached = asyncio.ensure_future(session.attach(carrier, Standing()))
            for asked in self._asks:
                await session.send(asked)
            await attached
        except Exception:  # whatever it is, this end is over
            carrier.close()

    def join(self, limits: Limits) -> None:
        """The device, until it ends."""
        joining = Joining("pi", self.data, "", self._folder / "pi", patience_seconds=5.0, limits=limits)

        async def run() -> None:
            await join(
                joining,
                self.dial,
                Random(0),
                self.told.append,
                machines=inline,
                probe=lambda _where, _dtype: Probed(2**30, 1e9),
            )

        run_virtual(run())


@pytest.mark.parametrize(
    ("says", "limits"),
    [
        ({"data__task": "causal-lm", "data__text": "label"}, Limits.read(task="classification")),
        ({"data__text": "diary"}, Limits.read(text="text", label="label")),
        ({"data__text": "label"}, Limits.read(text="text", label="label")),
        ({}, Limits.read(never="labels")),
        ({"method__name": "fedlora", "shape": "local"}, Limits.read(only="memsfl")),
    ],
    ids=str,
)
def test_a_run_beyond_is_refused_before_the_device_says_a_word_of_itself(
    says: dict[str, Any], limits: Limits, inputs: Path, tmp_path: Path
) -> None:
    server = Hostile(inputs, tmp_path, dict(says), [])
    with pytest.raises(Declined, match="owner allows no more") as declined:
        server.join(limits)
    (end,) = server.ends
    assert end.packets == [Hello, Kind.DECLINED]
    assert end.words == str(declined.value)


def asked(cut: int) -> Assignment:
    return Assignment("run", 0, "pi", DevicePlan("pi", cut=cut, batch_size=4), (0.1,), {})


@pytest.mark.parametrize(
    ("limits", "question"),
    [
        (Limits.read(least_blocks=1), asked(0)),
        (Limits.read(least_blocks=2), Judge("run", 0, "pi", DevicePlan("pi", cut=1, batch_size=4), {}, 0)),
    ],
    ids=["a plan", "judging"],
)
def test_a_question_beyond_is_answered_by_a_goodbye_and_no_byte_of_data(
    limits: Limits, question: Assignment | Judge, inputs: Path, tmp_path: Path
) -> None:
    server = Hostile(inputs, tmp_path, {}, [question])
    with pytest.raises(Declined, match="least-blocks") as declined:
        server.join(limits)
    (end,) = server.ends
    assert end.of_data == 0
    assert end.packets[-1] is Kind.DECLINED
    assert end.words == str(declined.value)
    assert [line for line in server.told if line.startswith("what leaves this device: ")]
    assert "sent 1 x" not in (tmp_path / "pi" / "state" / "run" / "sent.txt").read_text()


def test_the_same_question_is_answered_where_the_owner_has_said_nothing(inputs: Path, tmp_path: Path) -> None:
    """Else the tests above would see no data whatever they allow."""
    server = Hostile(inputs, tmp_path, {}, [asked(0)])

    def leaves(limits: Limits) -> int:
        with pytest.raises(JoinError):
            server.join(limits)
        return sum(end.of_data for end in server.ends)

    assert leaves(Limits(until=30.0, clock=lambda: asyncio.get_running_loop().time())) > 0


def test_words_of_a_server_move_no_cursor_and_begin_no_line(inputs: Path, tmp_path: Path) -> None:
    nasty = "run\n\x1b[2J\u202e\0"
    server = Hostile(inputs, tmp_path, {}, [])
    server.welcome = Welcome(nasty, LIFE, "pi", 0, server.welcome.config, CLASSES, "", "split")
    with pytest.raises(JoinError) as error:
        server.join(Limits())
    assert any("preparing" in line for line in server.told)
    assert all(line.isprintable() for line in (*server.told, str(error.value)))


def test_a_config_that_is_none(inputs: Path, tmp_path: Path) -> None:
    server = Hostile(inputs, tmp_path, {}, [])
    server.welcome = Welcome("run", LIFE, "pi", 0, '{"data": {"task": 7}}', (), "", "split")
    with pytest.raises(JoinError, match="expected the config of a run"):
        server.join(Limits())


ALL = Limits.read(
    task="classification",
    text="text",
    label="label",
    least_blocks=0,
    only="memsfl",
    rounds=99,
    until="2096-12-24T18:00",
)


def bytes_of(outcome: Any) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


def test_limits_that_allow_all_change_nothing(inputs: Path, tmp_path: Path) -> None:
    values = values_for(inputs)
    outcome = served(values, tmp_path / "real", limits={"slow": ALL, "quick": ALL})
    assert bytes_of(outcome) == bytes_of(simulated(values, tmp_path / "simulated"))
    assert outcome.folder is not None
    for name in ("slow", "quick"):
        (log,) = (tmp_path / "real" / "devices" / name / "state").glob("*/sent.txt")
        assert log.read_text().count(": sent ") == 2, "one line a round"
        assert (log.parent / "rounds.txt").read_text() == "0\n1\n"


def test_a_run_goes_on_without_a_device_that_declines_and_counts_it(inputs: Path, tmp_path: Path) -> None:
    """One whose owner lends a round; the other trains both."""
    outcome = served(values_for(inputs), tmp_path / "real", limits={"slow": Limits.read(rounds=1)})
    summary = json.loads((outcome.folder / "summary.json").read_text())
    assert summary["refusals"] == {"slow": {"declined": 1}}
    assert len(outcome.rows) == 2
