"""The host: what the hub asks of the run that it belongs to (`hub.Host`), on every process that devices talk to."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from cutlayer.errors import Refused
from cutlayer.fleet.machine import Machine
from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.gate.entitlement import Entitlement
from cutlayer.gate.guard import Guard
from cutlayer.gate.guarded import guarded
from cutlayer.gate.hub import Hub
from cutlayer.gate.reception import Attended, Timelined
from cutlayer.methods.method import Method
from cutlayer.model.fingerprint import fingerprint
from cutlayer.model.pieces import PieceServer, manifest_bytes
from cutlayer.model.source import ModelFiles
from cutlayer.run.inputs import ServerInputs
from cutlayer.transport.budget import Budget
from cutlayer.transport.packets import PIECE_BYTES
from cutlayer.transport.sent import Shelf, room_for_kept
from cutlayer.transport.session import Session
from cutlayer.types import Recorder
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Answer, Ask, Ready, Welcome

IN_FLIGHT_BYTES = 256 * 2**20
"""Handed to gRPC, or half arrived, at a time: it holds about four times as much."""
ANSWER_BYTES = PIECE_BYTES // 2
MOST_OFFSET = 2**50
"""The largest offset or length in a question for bytes: no model is as long."""
MOST_SAMPLES = 2**40
"""The most samples that a device may say that it has."""


class RunHost:
    """The run, as the hub asks for it.

    Args:
      inputs: What the run is made of.
      method: How it decides.
      declared: The server's profile, and what is declared of devices, by name; of others what they measured counts.
      life: Names this life of the process.
      machine: What the process computes on.
      clock: Seconds since the run began.
      record: Gets what devices did.
      standing: Whether a device may still be here; raises Refused.
      scratch: Where sessions keep what memory has no room for.

    Attributes:
      hub: The hub that asks; set when there is one.
      measured: By device, the FLOP/s that it has measured, whatever is declared of it.
    """

    hub: Hub

    def __init__(
        self,
        inputs: ServerInputs,
        method: Method,
        declared: Fleet,
        life: str,
        machine: Machine,
        *,
        clock: Callable[[], float],
        record: Recorder,
        standing: Callable[[str], None],
        scratch: Path,
    ) -> None:
        self._inputs, self._method, self._declared, self._life = inputs, method, declared, life
        self._machine, self._clock, self._record, self._standing = machine, clock, record, standing
        self.measured: dict[str, float] = {}
        self._pieces = PieceServer(inputs.model_settings)
        self._entitlement = Entitlement(method.round.shape.reads)
        self._incoming, self._outgoing = Budget(IN_FLIGHT_BYTES), Budget(IN_FLIGHT_BYTES)
        self._shelf = Shelf(scratch, room_for_kept())
        self._fingerprint = fingerprint(ModelFiles(inputs.config.model.name, inputs.config.model.revision))

    # What the methods are for, `hub.Host` says.

    def welcome(self, device: str, index: int) -> Welcome:
        declared = self._declared
        spans, sites = (one.name for one in declared.spans), (one.name for one in declared.sites)
        others = {declared.server.name, *spans, *sites}
        if device in others:
            raise Refused(
                "wrong-name",
                f"device {device}: expected a name that no other machine of the run has, got one of "
                f"{', '.join(sorted(others))}. Join under another name.",
            )
        return self.terms(device, index)

    def terms(self, name: str, index: int) -> Welcome:
        """The terms of the run, which every device or site that comes must know.

        Args:
          name: Who it is.
          index: Its place.
        """
        config = self._inputs.config
        # An adapter to go on from is the server's: devices get it with their assignments.
        config = config.model_copy(update={"model": config.model.model_copy(update={"adapter": None})})
        return Welcome(
            run=self._inputs.run_id,
            session=self._life,
            device=name,
            index=index,
            config=config.model_dump_json(),
            labels=self._inputs.labels,
            fingerprint=self._fingerprint.text,
            shape=self._method.round.shape.name,
        )

    def profile(self, ready: Ready) -> DeviceProfile:
        self.check_data(ready.device, ready.num_samples, ready.label_counts)
        if len(ready.max_blocks) > 1:
            raise Refused(
                "wrong-claims",
                f"device {ready.device}: expected at most one number of blocks that are lent, got "
                f"{len(ready.max_blocks)}. Do both ends run one version?",
            )
        self.measured[ready.device] = ready.flops_per_second
        declared = next((device for device in self._declared.devices if device.name == ready.device), None)
        if declared is not None:
            return declared
        try:
            return DeviceProfile(
                name=ready.device,
                flops_per_second=ready.flops_per_second,
                efficiency=1.0,
                memory_bytes=ready.memory_bytes,
                up_bits_per_second=ready.up_bits_per_second,
                down_bits_per_second=ready.down_bits_per_second,
                latency_seconds=ready.latency_seconds,
                max_blocks=ready.max_blocks[0] if ready.max_blocks else None,
            )
        except ValidationError as error:
            field = error.errors()[0]
            raise Refused(
                "wrong-profile", f"device {ready.device}: expected {field['msg']}, got {field['loc']}. Measure again."
            ) from None

    def check_data(self, device: str, samples: int, counts: Sequence[int]) -> None:
        """Raises Refused for samples that cannot be, and for classes that are not the run's.

        Args:
          device: Who says so.
          samples: That it has.
          counts: Of each class.
        """
        known = 0 if self._method.round.shape.labels_stay else len(self._inputs.labels)
        if not 1 <= samples <= MOST_SAMPLES:
            raise Refused(
                "wrong-claims", f"device {device}: expected 1 to {MOST_SAMPLES} samples, got {samples}. Give it data."
            )
        if len(counts) != known or (known and (min(counts) < 0 or sum(counts) != samples)):
            raise Refused(
                "wrong-claims",
                f"device {device}: expected how many of {samples} samples are of each of {known} classes, got "
                f"{reprlib.repr(counts)}. Do both ends run one version?",
            )

    async def answer(self, device: str, ask: Ask) -> Answer:
        blocks = self._inputs.base.num_blocks
        most = {"files": blocks, "piece": MOST_OFFSET}.get(ask.what, 0)
        longest = blocks if ask.what == "files" else MOST_OFFSET
        if not (0 <= ask.number <= most and 0 <= ask.length <= longest):
            raise Refused(
                "wrong-question",
                f"device {device}: expected a question of the model's {blocks} blocks and its pieces, got number "
                f"{ask.number} and length {ask.length}. Do both ends run one version?",
            )
        if ask.what == "echo":
            return Answer(torch.zeros(min(ask.length, ANSWER_BYTES), dtype=torch.uint8))
        if ask.what == "files":
            top = ask.length if ask.name == "head" else None
            self._entitlement.check_part(device, ask.number, top)
            # where the machine computes: torch builds a model on the meta device for one thread of a process at a time
            manifest = await self._machine.aside(lambda: self._pieces.manifest(ask.number, top=top))
            return _answer(manifest_bytes(manifest))
        if ask.what == "piece":
            self._entitlement.check_piece(device, ask.name)
            return _answer(
                await asyncio.to_thread(self._pieces.read, ask.name, ask.number, min(ask.length, ANSWER_BYTES))
            )
        raise Refused("wrong-kind", f"device {device}: expected to be asked for echo, files or piece, got {ask.what}.")

    def session(self, device: str) -> tuple[Session, Link]:
        inputs = self._inputs
        guard = Guard(
            device,
            inputs.run_id,
            inputs.base,
            hidden_size=inputs.costs.hidden_size,
            longest_tokens=inputs.config.data.max_length,
            compression=inputs.compression,
            holds=self._method.round.holds,
            script=self._method.round.script,
        )
        session = self.session_within(guard.frame_limit)
        link = guarded(session, guard, lambda link: inputs.compressed(Timelined(link, self._clock, self._record)))
        return session, Attended(
            self._entitlement.granting(link, device),
            lambda error: self.hub.eject(device, error),
            lambda: self.hub.members[device].refused,
        )

    def session_within(self, limit_bytes: Callable[[], int]) -> Session:
        """A session of this process's.

        Args:
          limit_bytes: The longest frame that may arrive at this moment.
        """
        return Session(
            self._life, limit_bytes=limit_bytes, incoming=self._incoming, outgoing=self._outgoing, shelf=self._shelf
        )

    def standing(self, device: str) -> None:
        self._standing(device)


def _answer(data: bytes) -> Answer:
    return Answer(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8))
