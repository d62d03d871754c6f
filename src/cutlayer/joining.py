"""A device of a real fleet: it joins a server, measures itself, reads its data and its part of the model, trains."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from pydantic import ValidationError

from cutlayer.config import RunConfig
from cutlayer.data.tasks import pad_token_id
from cutlayer.device.agent import Agent, Asking, Prepare, Wrong, asking, measure_link, nothing_wrong
from cutlayer.device.commit import CommittingLink
from cutlayer.device.device import Device
from cutlayer.device.dialled import DialledSpans
from cutlayer.device.lent import Lending, Lent, LentSpans
from cutlayer.device.limits import EVERYTHING, Limits
from cutlayer.device.own_data import read_own_data
from cutlayer.device.own_link import OwnLink
from cutlayer.device.probe import LinkRates, Probed, probe
from cutlayer.device.sent_log import SentLog
from cutlayer.device.shape import shape_by_name
from cutlayer.device.store import FolderStore
from cutlayer.device.told import Told
from cutlayer.errors import JoinError
from cutlayer.files import for_owner_alone, private_folder
from cutlayer.fleet.machine import Machines, RealMachine
from cutlayer.model.base import Base
from cutlayer.model.cost import cost_model
from cutlayer.model.fingerprint import Fingerprint, check_same, fingerprint
from cutlayer.model.pieces import PieceStore, check_due, read_manifest
from cutlayer.model.source import ModelFiles
from cutlayer.model.vocabulary import check_ids
from cutlayer.settings import (
    columns_of,
    data_spec,
    hardware,
    load_tokenizer,
    model_settings,
    packed,
    packing,
    train_settings,
)
from cutlayer.shown import shown
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, Dial
from cutlayer.transport.session import Session
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Ask, Assignment, Judge, Ready, Welcome

FROM_SERVER = "server"
FRAME_BYTES = 8 * 2**30
"""A device believes its server, but not any number: no adapter and no gradient is longer."""
IN_FLIGHT_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Joining:
    """The settings with which a device joins.

    Attributes:
      name: its name.
      data: its training data: a file or folder.
      model: a folder, a hub name, or `server`, which sends what the device needs; empty for the name that the run has.
      folder: where it keeps what must outlive it: pieces of the model, and of each run its state after each round.
      hardware: what it computes on.
      max_blocks: the most blocks that its owner lends; None for as many as fit.
      patience_seconds: how long it tries to reach a server.
      limits: what its owner allows the server.
    """

    name: str
    data: str
    model: str
    folder: Path
    hardware: str = "cpu"
    max_blocks: int | None = None
    patience_seconds: float = 600.0
    limits: Limits = EVERYTHING

    @classmethod
    def read(
        cls,
        name: str,
        data: str | Path,
        *,
        model: str | Path = "",
        folder: str | Path | None = None,
        hardware: str = "cpu",
        max_blocks: int | None = None,
        patience_seconds: float = 600.0,
        limits: Limits = EVERYTHING,
    ) -> Joining:
        """A joining as a person says it, on the command line, in Python or to Flower.

        Args:
          name, data, model, hardware, max_blocks, patience_seconds, limits: See the attributes.
          folder: As the attribute; None or empty for `cutlayer-NAME`.

        Example:
          >>> print(Joining.read("pi-1", "mine.jsonl").folder)
          cutlayer-pi-1
        """
        return cls(
            name=name,
            data=str(data),
            model=str(model),
            folder=Path(folder or f"cutlayer-{name}"),
            hardware=hardware,
            max_blocks=max_blocks,
            patience_seconds=patience_seconds,
            limits=limits,
        )


async def join(
    joining: Joining,
    dial: Dial,
    random: Random,
    notice: Callable[[str], None],
    *,
    machines: Machines = RealMachine,
    probe: Callable[[torch.device, torch.dtype], Probed] = probe,
    wrong: Wrong = nothing_wrong,
) -> None:
    """Takes part in the server's run until it is over.

    Args:
      joining: Who joins, with what.
      dial: Opens a connection to the server.
      random: For the jitter of waiting.
      notice: Told what happens, for a person to read.
      machines: Makes what the device computes on.
      probe: Measures memory and speed.
      wrong: See `Agent`.

    Raises:
      JoinError: The server refuses, or there is none.
      Declined: The server asks for what the owner does not allow.
      UserError: The data, the model or the hardware are not what the run needs.
    """

    def tell(line: str) -> None:
        notice(shown(line))  # much of it is the server's

    async def in_time(address: str = "") -> Carrier:
        joining.limits.check_time()
        return await (dial(address) if address else dial())

    prepare = _preparing(joining, in_time, tell, machines, probe)
    with for_owner_alone():
        await Agent(joining.name, in_time, prepare, random, tell, joining.patience_seconds, wrong).attend()


def _preparing(
    joining: Joining,
    dial: Dial,
    notice: Callable[[str], None],
    machines: Machines,
    probe: Callable[[torch.device, torch.dtype], Probed],
) -> Prepare:
    taken = set[tuple[str, int]]()  # rounds, of all runs

    async def prepare(welcome: Welcome, ask: Asking) -> _Attendance:
        private_folder(joining.folder)  # not before a server has answered
        lending = _lending(joining, welcome, notice, taken)
        files = _Files(joining, welcome, dial)
        await files.fetch(0, ask=ask)  # what the model is, and how it reads text
        attendance = _Attendance(joining, welcome, await measure_link(ask), files, lending, dial, machines, notice)
        await attendance.machine.aside(lambda: attendance.load(probe))
        return attendance

    return prepare


def _lending(joining: Joining, welcome: Welcome, notice: Callable[[str], None], taken: set[tuple[str, int]]) -> Lending:
    """The part of itself that the device lends to this run, of which the server has said what it is.

    Raises:
      Declined: The owner does not allow it.
    """
    config, shape, limits = _config_of(welcome), shape_by_name(welcome.shape), joining.limits
    limits.check_run(shape, config.method.name, config.data.task, columns_of(config))
    if limits.least_blocks and joining.model == FROM_SERVER:
        notice("--least-blocks: the server sends the blocks too, so that it knows what they do; give --model a folder")
    return Lending(limits, shape, SentLog(_state_of(joining, welcome), limits.clock), notice, taken)


def _config_of(welcome: Welcome) -> RunConfig:
    """The run's config.

    Raises:
      JoinError: The server says none.
    """
    try:
        return RunConfig.model_validate_json(welcome.config)
    except ValidationError as error:
        field = error.errors()[0]
        place = ".".join(map(str, field["loc"])) or "config"
        raise JoinError(
            f"join: expected the config of a run, got {place}: {field['msg']}. Do both ends run one version?"
        ) from error


def _state_of(joining: Joining, welcome: Welcome) -> Path:
    """The folder in which the device keeps its state in a run."""
    return joining.folder / "state" / _as_name(welcome.run)


class _Files:
    """The model's files, from this machine or from the server.

    Attributes:
      revision: of a model on the hub, where its name is the run's.
    """

    def __init__(self, joining: Joining, welcome: Welcome, dial: Dial) -> None:
        self._joining, self._dial = joining, dial
        model = _config_of(welcome).model
        self._named = joining.model or model.name
        self.revision = None if joining.model else model.revision
        self._store = PieceStore(joining.folder / "model", FRAME_BYTES) if joining.model == FROM_SERVER else None
        self._have = DevicePlan("", cut=-1)  # nothing

    @property
    def name(self) -> str:
        """The name by which `ModelFiles` finds these files."""
        return self._named if self._store is None else str(self._store.folder)

    async def fetch(self, cut: int, top: int | None = None, *, ask: Asking | None = None) -> None:
        """Makes sure that what a device with this cut needs is here.

        Args:
          cut: Blocks on the device.
          top: The first block of the tail that it holds as well, with what follows the last; None for none.
          ask: Where the connection of a handshake is at hand; else one is opened.
        """
        have = self._have
        if self._store is None or (have.cut >= cut and (top is None or (have.top is not None and have.top <= top))):
            return
        if ask is None:
            async with asking(self._joining.name, self._dial) as ask:
                await self._fetch(self._store, cut, top, ask)
        else:
            await self._fetch(self._store, cut, top, ask)
        self._have = DevicePlan("", cut=cut, top=top)

    async def _fetch(self, store: PieceStore, cut: int, top: int | None, ask: Asking) -> None:
        listed = await ask(Ask("files", "", cut) if top is None else Ask("files", "head", cut, length=top))
        manifest = read_manifest(bytes(listed.body.numpy()))
        check_due(manifest, cut, top)
        for piece, offset in await asyncio.to_thread(store.missing, manifest):
            while offset < piece.length:
                answer = await ask(Ask("piece", piece.name, offset, length=min(CHUNK_BYTES, piece.length - offset)))
                data = bytes(answer.body.numpy())
                await asyncio.to_thread(store.append, piece, offset, data)
                offset += len(data)


class _Attendance:
    """The device with its data and its part of the model (`agent.Attendance`)."""

    def __init__(
        self,
        joining: Joining,
        welcome: Welcome,
        rates: LinkRates,
        files: _Files,
        lending: Lending,
        dial: Dial,
        machines: Machines,
        notice: Callable[[str], None],
    ) -> None:
        self._joining, self._welcome, self._rates, self._files, self._dial = joining, welcome, rates, files, dial
        self._lending, self._notice = lending, notice
        self._shape = shape_by_name(welcome.shape)
        config = _config_of(welcome)
        found = {"name": files.name, "revision": files.revision}
        self._config = config.model_copy(update={"model": config.model.model_copy(update=found)})
        self.session = Session(
            limit_bytes=lambda: FRAME_BYTES, incoming=Budget(IN_FLIGHT_BYTES), outgoing=Budget(IN_FLIGHT_BYTES)
        )
        told = Told(Lent(self.session, lending), config.train.rounds, notice, lambda: self._costs.num_blocks)
        self._link = OwnLink(told, joining.name, rates, self._before_round)
        self._store = FolderStore(_state_of(joining, welcome), run=welcome.run, device=joining.name)
        self._committing = CommittingLink(self._link, self._store, config.train.checkpoints)
        self.machine = machines(joining.name, self._link.record)

    def load(self, probe: Callable[[torch.device, torch.dtype], Probed]) -> None:
        """Reads what there is to read and measures what there is to measure; where the machine computes."""
        config, where = self._config, hardware(self._joining.hardware)
        files = ModelFiles(self._files.name, self._files.revision)
        if self._joining.model != FROM_SERVER:  # its pieces have digests of their own
            check_same(fingerprint(files), Fingerprint.read(self._welcome.fingerprint), files.name)
        tokenizer = load_tokenizer(files)
        pad_id = pad_token_id(tokenizer)
        settings = model_settings(config, self._welcome.labels, pad_id)
        base, self._costs = Base(settings, where), cost_model(settings).of(self._shape.flow)
        spec = data_spec(config, self._welcome.labels, pad_id, self._welcome.index)
        data = read_own_data(self._joining.data, spec, tokenizer)
        check_ids(data.samples.input_ids.flat, data.samples.type_ids, files, f"data {self._joining.data}")
        self._notice(f"data: {data.samples.line}")
        label_counts = () if self._shape.labels_stay else data.label_counts
        self._lending.read(data.columns, data.num_samples, counts=bool(label_counts))
        mend = "Put the file back as it was, or join under another --name with another --folder."
        self._store.began_with("rows", data.samples.digest, mend)
        probed = probe(where, base.dtype)
        codecs, costs, shape = packing(config), self._costs, self._shape
        self._spans = DialledSpans(
            self._joining.name,
            self._welcome.run,
            self._welcome.fingerprint,
            self._dial,
            lambda link: packed(link, codecs, base, costs, shape),
            self._notice,
        )
        self._device = Device(
            self._joining.name,
            base,
            data.batches(),
            self.machine,
            costs,
            train_settings(config),
            shape,
            LentSpans(self._spans, self._lending),
            data.held_out,
        )
        self._packed = packed(self._committing, codecs, base, costs, shape)
        self._committing.attach(self._device, self._packed)
        self.ready = Ready(
            device=self._joining.name,
            session="",
            next_round=0,
            received=0,
            flops_per_second=probed.flops_per_second,
            memory_bytes=probed.memory_bytes,
            up_bits_per_second=self._rates.up_bits_per_second,
            down_bits_per_second=self._rates.down_bits_per_second,
            latency_seconds=self._rates.latency_seconds,
            num_samples=data.num_samples,
            label_counts=label_counts,
            max_blocks=() if self._joining.max_blocks is None else (self._joining.max_blocks,),
        )

    async def _before_round(self, opening: Assignment | Judge) -> None:
        """Fetches what a round needs of the model, and counts what its steps cost: now, so that no step waits."""
        plan, num_tokens = opening.plan, self._config.data.max_length
        await self._files.fetch(*((plan.cut, plan.top) if isinstance(opening, Judge) else self._shape.reads(plan)))
        count = self._costs.device_forward if isinstance(opening, Judge) else self._costs.device
        await self.machine.aside(lambda: count(plan, plan.micro_batch_size, num_tokens))

    async def converse(self) -> None:
        """See `agent.Attendance`."""
        try:
            await self._device.converse(self._packed)
        finally:
            self._lending.log.end()
            self._spans.close()
            self.machine.close()


def _as_name(run: str) -> str:
    """The name that a server gives its run, as the name of a folder and nothing else."""
    return re.sub(r"[^0-9A-Za-z]", "-", run)[:64]
