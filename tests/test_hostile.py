"""Hostile peers over real sockets: each is refused with a counted reason, while honest devices train what they would
have trained alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import cutlayer.gate.door as gate
import cutlayer.gate.hub as hub
from cutlayer import __version__
from cutlayer.config import read_config
from cutlayer.errors import WireError
from cutlayer.fleet.profile import load_fleet
from cutlayer.gate.allowance import Allowance
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roster import Roster
from cutlayer.joining import Joining
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare, prepare_server, write_shares
from cutlayer.run.run import Outcome
from cutlayer.run.served import serve
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.certificates import issue_device, issue_server, make_authority, write_issued
from cutlayer.transport.grpc_carrier import dial
from cutlayer.transport.handshake import hear, say
from cutlayer.transport.packets import Kind, Packet, pack
from cutlayer.transport.session import Session, Standing, turn_of
from cutlayer.transport.tls import ServerTls, channel_credentials
from cutlayer.wire.messages import Activations, Ask, Assignment, Hello, Ready, Refusal, Stand, Welcome
from real import device, one_thread, simulated, values_for

NOW = datetime.now(UTC)  # TLS looks at the machine's clock
TERABYTE = 2**40


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return adapter_of(simulated(values_for(inputs), tmp_path_factory.mktemp("runs") / "undisturbed"))


def adapter_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


@dataclass
class Fleet:
    """A fleet folder, and how its devices dial.

    Attributes:
      folder: the fleet folder.
      roster: who may come in.
      proofs: by device, its token, or its certificate and key.
    """

    folder: Path
    roster: Roster
    proofs: dict[str, Any]

    @classmethod
    def make(cls, folder: Path, *names: str, certificates: bool = False) -> Fleet:
        roster = Roster.create(folder)
        make_authority(folder, NOW)
        issue_server(folder, ["127.0.0.1"], NOW)
        fleet = cls(folder, roster, {})
        for name in names:
            if certificates:
                fleet.certify(name)
            else:
                fleet.proofs[name] = roster.add(name, when=NOW)
        return fleet

    def certify(self, name: str, *, when: datetime = NOW, days: float = 1) -> None:
        issued = issue_device(self.folder, name, when, days=days)
        self.roster.add_certificate(name, issued.fingerprint, when=NOW)
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        write_issued(*files, issued)
        self.proofs[name] = files

    @property
    def tls(self) -> ServerTls:
        return ServerTls(self.folder, require_client_certificate=self.roster.kind == "certificate")

    async def dial(self, address: str, name: str, proof: Any = None) -> Carrier:
        """As this device, with its own proof or another."""
        proof = proof or self.proofs[name]
        files, token = (proof, None) if isinstance(proof, tuple) else ((), proof)
        credentials = channel_credentials(self.folder / "ca.crt", *files)
        return await dial(address, name=name, token=token, credentials=credentials)


async def attacked(
    values: dict[str, Any],
    out: Path,
    fleet: Fleet,
    attack: Callable[[str], Awaitable[object]],
    *,
    hostile: int = 0,
) -> Outcome:
    """A run whose server is attacked before its last honest device has come, or, by members of the fleet, in rounds.

    Args:
      values: Of the run's config.
      out: The run folder.
      fleet: Who may come in.
      attack: Given the server's address.
      hostile: Members of the fleet that attack; the run waits for them, and they come before the honest ones.
    """
    files, config = write_shares(prepare(read_config(None, values={**values, "out": str(out)})), out / "shares")
    machines = one_thread()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    door = GrpcDoor("127.0.0.1:0", Admission(fleet.roster), fleet.tls, port.set_result)
    inputs, declared = prepare_server(config), load_fleet(config.fleet)
    async with asyncio.TaskGroup() as tasks:
        least = len(files) + hostile
        serving = tasks.create_task(serve(inputs, declared, NoProgress(), door, min_devices=least, machines=machines))
        address = f"127.0.0.1:{await port}"
        attacking = tasks.create_task(attack(address))  # type: ignore[arg-type]
        *early, late = files
        for name in early:
            tasks.create_task(honest(fleet, name, files[name], out, address, machines))
        if not hostile:
            await attacking
        tasks.create_task(honest(fleet, late, files[late], out, address, machines))
    return serving.result()


async def honest(fleet: Fleet, name: str, data: Path, out: Path, address: str, machines: Any) -> None:
    joining = Joining(name, str(data), "", out / "devices" / name, patience_seconds=20.0)
    await device(joining, address, machines, open_stream=lambda: fleet.dial(address, name))


async def heard(carrier: Carrier, *packets: bytes) -> str:
    """The server's last word to these packets: the reason of its refusal, or `lost`."""

    async def reason() -> str:
        while not isinstance(answer := await hear(carrier), Refusal):
            pass
        return answer.reason

    listening = asyncio.ensure_future(reason())
    try:
        with suppress(CarrierLost):  # it has been refused before it has said all
            for packet in packets:
                await carrier.send(packet)
        return await listening
    except CarrierLost:
        return "lost"
    finally:
        carrier.close()


# ------------------------------------------------------------------ strangers, and devices before they are ready


def test_who_may_not_come_in(inputs: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HELLO_SECONDS", 1.0)
    monkeypatch.setattr(hub, "Allowance", partial(Allowance, messages_at_once=200, messages_per_second=50))
    fleet = Fleet.make(tmp_path / "fleet", "slow", "quick", "other", "gone", "flooding")
    fleet.roster.revoke("gone", when=NOW)
    reasons: dict[str, str] = {}

    async def attack(address: str) -> None:
        async def tried(what: str, name: str, *packets: bytes, proof: str = "") -> None:
            reasons[what] = await heard(await fleet.dial(address, name, proof), *packets)

        def hello(name: str) -> bytes:
            return handshake(Hello(name, __version__))

        await tried("wrong token", "other", hello("other"), proof="x" * 43)
        await tried("another's token", "quick", hello("quick"), proof=fleet.proofs["other"])
        await tried("unknown", "nobody", hello("nobody"), proof="x" * 43)
        await tried("revoked", "gone", hello("gone"))
        await tried("another's name", "other", hello("quick"))
        await tried("silent", "other")
        await tried("noise", "other", b"GET / HTTP/1.1\r\n\r\n" * 10)
        await tried("long hello", "other", pack(Packet(Kind.HANDSHAKE, total=10**5, body=bytes(10**5)), check=False))
        await tried("terabyte", "other", pack(Packet(Kind.DATA, 0, 1, total=TERABYTE, body=bytes(64)), check=False))
        await tried("wrong kind", "other", hello("other"), handshake(Stand("", 0, 0)))
        await tried("a part of no plan", "other", hello("other"), handshake(Ask("files", "", 1)))
        await tried("a piece of no plan", "other", hello("other"), handshake(Ask("piece", "block-0.safetensors")))
        await tried("10^9 blocks", "other", hello("other"), handshake(Ask("files", "", 10**9)))
        await tried("beyond the piece", "other", hello("other"), handshake(Ask("piece", "config.json", 2**60, 1)))
        await tried("a strange question", "other", hello("other"), handshake(Ask("passwords")))
        echo = handshake(Ask("echo"))
        await tried("flood", "flooding", hello("flooding"), *[echo] * 400)
        plain = await dial(address, name="other", token=fleet.proofs["other"], credentials=None)
        reasons["plain text"] = await heard(plain, hello("other"))
        await counted_by_tls.wait()

    counted_by_tls = tls_counts(monkeypatch)
    outcome = asyncio.run(attacked(values_for(inputs), tmp_path / "run", fleet, attack))
    assert reasons == {
        "wrong token": "wrong-token",
        "another's token": "wrong-token",
        "unknown": "unknown-device",
        "revoked": "revoked",
        "another's name": "wrong-name",
        "silent": "too-slow",
        "noise": "malformed",
        "long hello": "too-long",
        "terabyte": "malformed",
        "wrong kind": "wrong-kind",
        "a part of no plan": "not-planned",
        "a piece of no plan": "not-planned",
        "10^9 blocks": "wrong-question",
        "beyond the piece": "wrong-question",
        "a strange question": "wrong-kind",
        "flood": "flood",
        "plain text": "lost",  # TLS itself refuses it: nothing of it reaches us
    }
    counted = outcome.summary["refusals"]
    assert counted["(stranger)"].pop("no-tls") >= 1, "gRPC tries more than once"
    assert counted["(stranger)"] == {"wrong-token": 2, "unknown-device": 1, "revoked": 1}
    assert counted["other"] == {
        "wrong-name": 1,
        "too-slow": 1,
        "malformed": 2,
        "too-long": 1,
        "wrong-kind": 2,
        "not-planned": 2,
        "wrong-question": 2,
    }
    assert counted["flooding"] == {"flood": 1}
    assert adapter_of(outcome) == undisturbed


def test_certificates(inputs: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet.make(tmp_path / "fleet", "slow", "quick", "other", "gone", certificates=True)
    fleet.certify("expired", when=NOW - timedelta(days=10), days=9)
    fleet.roster.revoke("gone", when=NOW)
    reasons: dict[str, str] = {}

    async def attack(address: str) -> None:
        for what, name, proof in (
            ("another's name", "quick", fleet.proofs["other"]),
            ("revoked", "gone", None),
            ("expired", "expired", None),
        ):
            carrier = await fleet.dial(address, name, proof)
            reasons[what] = await heard(carrier, handshake(Hello(name, __version__)))
        await counted_by_tls.wait()

    counted_by_tls = tls_counts(monkeypatch)
    outcome = asyncio.run(attacked(values_for(inputs), tmp_path / "run", fleet, attack))
    assert reasons == {"another's name": "wrong-name", "revoked": "revoked", "expired": "lost"}
    counted = outcome.summary["refusals"]
    assert counted["(stranger)"].pop("no-tls") >= 1
    assert counted == {"(stranger)": {"wrong-name": 1, "revoked": 1}}
    assert adapter_of(outcome) == undisturbed


def tls_counts(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a server counts what TLS has refused, which it looks for often from now on."""
    counted, count = asyncio.Event(), Refusals.count

    def noticed(self: Refusals, device: str | None, error: WireError, peer: str = "") -> None:
        count(self, device, error, peer)
        if error.reason == "no-tls":
            counted.set()

    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 0.5)
    monkeypatch.setattr(Refusals, "count", noticed)
    return counted


def handshake(message: Any) -> bytes:
    """A message of the handshake as a packet; over TLS nobody checks it."""
    sent: list[bytes] = []

    class Into:
        intact = True

        async def send(self, packet: bytes) -> None:
            sent.append(packet)

    asyncio_free(say(Into(), message))  # type: ignore[arg-type]
    return sent[0]


def asyncio_free(coroutine: Any) -> None:
    """Runs a coroutine that waits for nothing."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


# ------------------------------------------------------------------ members of the fleet, in a round


class OneAtATime:
    """A carrier that several may send on; gRPC ends a call on which two do at the same time, and tells nobody."""

    def __init__(self, carrier: Carrier) -> None:
        self.intact, self.receive, self.close = carrier.intact, carrier.receive, carrier.close
        self._send, self._turn = carrier.send, asyncio.Lock()

    async def send(self, packet: bytes) -> None:
        async with self._turn:
            await self._send(packet)


@asynccontextmanager
async def in_a_round(fleet: Fleet, address: str, name: str) -> AsyncIterator[tuple[Session, Carrier, Assignment]]:
    """A device that behaves until it has its assignment."""
    carrier = OneAtATime(await fleet.dial(address, name))
    session = Session(limit_bytes=lambda: 2**30, incoming=Budget(2**28), outgoing=Budget(2**28))
    try:
        await say(carrier, Hello(name, __version__))
        welcome = await hear(carrier)
        assert isinstance(welcome, Welcome)
        await say(carrier, Ready(name, "", 0, 0, 1e9, 2**30, 1e7, 1e7, 0.01, 8, (3, 3, 2), max_blocks=(1,)))
        stand = await hear(carrier)
        assert isinstance(stand, Stand)
        attached = asyncio.ensure_future(session.attach(carrier, Standing(stand.session, -1, 0)))
        try:
            receiving = asyncio.ensure_future(session.receive())
            await asyncio.wait((attached, receiving), return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                attached.result()  # it was lost, and says why
            message = receiving.result()
            assert isinstance(message, Assignment)
            yield session, carrier, message
            with pytest.raises(CarrierLost):  # the server ends it
                await asyncio.wait_for(attached, 20.0)
        finally:
            attached.cancel()
            await asyncio.gather(attached, return_exceptions=True)
    finally:
        carrier.close()


def batch(assignment: Assignment, name: str) -> Activations:
    """The activations that an honest device would send first."""
    rows, tokens, hidden = assignment.plan.batch_size, 6, 16
    return Activations(
        assignment.run,
        assignment.round,
        0,
        name,
        torch.zeros(rows, tokens, hidden),
        torch.ones(rows, tokens, dtype=torch.bool),
        torch.zeros(rows, dtype=torch.int32),
        rows,
    )


CHANGES: dict[str, Callable[[Activations], Activations]] = {
    "not-finite": lambda it: replace(it, h_BTD=torch.full_like(it.h_BTD, float("nan"))),
    "wrong-shape": lambda it: replace(it, h_BTD=it.h_BTD[..., :-1]),
    "wrong-dtype": lambda it: replace(it, h_BTD=it.h_BTD.double()),
    "wrong-step": lambda it: replace(it, step=1),
    "wrong-device": lambda it: replace(it, device="quick"),
}


def test_who_misbehaves_in_a_round(
    inputs: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "Allowance", partial(Allowance, messages_at_once=200, messages_per_second=50))
    changes = CHANGES
    others = ["too-long", "flood", "revoked"]
    fleet = Fleet.make(tmp_path / "fleet", "slow", "quick", *changes, *others)

    async def sends(address: str, name: str) -> None:
        async with in_a_round(fleet, address, name) as (session, _, assignment):
            await session.send(changes[name](batch(assignment, name)))

    async def announces_a_terabyte(address: str) -> None:
        async with in_a_round(fleet, address, "too-long") as (_, carrier, assignment):
            piece = Packet(Kind.DATA, turn_of(assignment), 1, 1, total=TERABYTE, body=bytes(64))
            await carrier.send(pack(piece, check=False))

    async def floods(address: str) -> None:
        async with in_a_round(fleet, address, "flood") as (_, carrier, assignment):
            beat = pack(Packet(Kind.HEARTBEAT, turn_of(assignment), 0, 1), check=False)
            with suppress(CarrierLost):
                while True:
                    await carrier.send(beat)

    async def is_revoked(address: str) -> None:
        async with in_a_round(fleet, address, "revoked"):
            fleet.roster.revoke("revoked", when=NOW)

    async def attack(address: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in changes:
                tasks.create_task(sends(address, name))
            for attempt in (announces_a_terabyte, floods, is_revoked):
                tasks.create_task(attempt(address))

    hostile = len(changes) + len(others)
    outcome = asyncio.run(attacked(values_for(inputs), tmp_path / "run", fleet, attack, hostile=hostile))
    counted = {name: {name: 1} for name in (*changes, *others)} | {"too-long": {"malformed": 1}}
    assert outcome.summary["refusals"] == counted
    assert adapter_of(outcome) == undisturbed
