"""Workers in processes of their own, placed, watched and begun again by Ray (docs/decisions/0024).

What is asked of a worker that died Ray asks of the one that it begins in its place. Ray's cluster is the one that
`RAY_ADDRESS` names, else one of this process, on this machine, that ends with it: its ports are on
all addresses, and it asks for a token that nobody else knows. A cluster of somebody's own must ask for one too
(`RAY_AUTH_MODE=token`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import secrets
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cutlayer.data.tasks import Samples
from cutlayer.errors import ConfigError, CutlayerError, WorkerLost
from cutlayer.fleet.cores import usable_cores
from cutlayer.fleet.profile import Fleet
from cutlayer.run.inputs import ServerInputs
from cutlayer.run.workers.worker import Held, Report, Setup, WorkerProcess
from cutlayer.server.share import Share
from cutlayer.transport.address import joined
from cutlayer.wire.messages import Finish

RAYS_CHOICES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to Ray's makers
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # SIGTERM is no crash, of which it prints a trace
    "RAY_worker_niceness": "0",  # Ray's own choice, 15, leaves a worker the time that nobody else wants
}
"""Settings in place of Ray's own, unless the environment says something else; Ray reads them when it is imported."""

try:
    for name, value in RAYS_CHOICES.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:  # whoever reaches a cluster's ports and knows its token runs code on it
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray
    from ray.exceptions import RayActorError, RayTaskError
except ModuleNotFoundError:
    raise ConfigError("--workers: expected Ray, got none. Run: pip install 'cutlayer[ray]'") from None

MOST_RESTARTS = 20
"""Restarts of a worker in a run: one that dies as often has something that beginning it again does not cure."""


class RayWorkers:
    """Workers of a run (`serve.Workers`).

    Args:
      number: How many.
      host: Where they listen, each on a port of its own.
      port: Of the head; workers take the next ones. 0 takes free ones.
      roster: The fleet folder, which every machine of the cluster must see; None lets everybody in.
    """

    def __init__(self, number: int, host: str, port: int, roster: Path | None) -> None:
        self.number, self._host, self._port, self._roster = number, host, port, roster

    @asynccontextmanager
    async def start(self, inputs: ServerInputs, declared: Fleet) -> AsyncIterator[Sequence[RayWorker]]:
        """See `serve.Workers`.

        Raises:
          ConfigError: Ray has no place for so many.
        """
        hardware = inputs.config.hardware
        if hardware not in ("cpu", "cuda"):
            raise ConfigError(
                f"--workers: expected cpu or cuda, got {hardware}: Ray gives each worker a GPU. Change hardware."
            )
        cuda = hardware == "cuda"
        try:
            await asyncio.to_thread(self._connect, cuda)  # which takes seconds, and elsewhere leaves signals alone
            own = ray.util.get_node_ip_address()
            process = ray.remote(
                num_cpus=1, num_gpus=1 if cuda else 0, max_restarts=MOST_RESTARTS, max_task_retries=-1
            )(_Process)
            setups = [self._setup(number, inputs, declared) for number in range(self.number)]
            actors = [process.remote(_small(setup), own) for setup in setups]
            try:
                yield [RayWorker(number, actor) for number, actor in enumerate(actors)]
            finally:
                for actor in actors:
                    ray.kill(actor)  # what is still asked of it ends here, and not as an error of the shutdown
        finally:
            await asyncio.to_thread(ray.shutdown)

    def _connect(self, cuda: bool) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        # Ray writes on this process's standard output what became of an actor; what concerns a person the head says
        ray._private.worker.print_to_stdstream = lambda *_args, **_options: None
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"--workers: expected a cluster of Ray at RAY_ADDRESS={address}, got "
                    f"{' '.join(str(error).split())[:300]}. Start one there, or unset RAY_ADDRESS."
                ) from error
        else:
            ray.init(
                address="local",
                num_cpus=self.number,
                include_dashboard=False,
                **quiet,
            )
        kind, have = "GPU" if cuda else "CPU", ray.cluster_resources()
        if have.get(kind, 0) < self.number:
            raise ConfigError(
                f"--workers: expected a {kind} for each of {self.number}, got {have.get(kind, 0):g} in Ray's cluster. "
                "Start fewer."
            )

    def _setup(self, number: int, inputs: ServerInputs, declared: Fleet) -> Setup:
        scratch = Path(inputs.config.out).resolve() / "scratch" / f"worker-{number}"
        roster = self._roster and self._roster.resolve()
        address = joined(self._host, self._port + 1 + number if self._port else 0, "serve")
        # a copy: without the model that the head has loaded, and without the data that it evaluates on
        return Setup(
            replace(inputs, validation=Samples.none()), declared, address, roster, scratch, _threads(self.number)
        )


class _Process(WorkerProcess):
    """The worker, in Ray's process.

    Args:
      setup: What it is made of, as `_small` makes it.
      head: The address of the head's machine.
    """

    def __init__(self, setup: bytes, head: str) -> None:
        own = ray.util.get_node_ip_address()
        super().__init__(pickle.loads(zlib.decompress(setup)), "" if own == head else own)


class RayWorker:
    """A worker as the head knows it (`switchboard.Worker`)."""

    def __init__(self, number: int, actor: Any) -> None:
        self._number, self._actor = number, actor

    async def expect(self, device: str, index: int) -> str:
        """See `WorkerProcess.expect`."""
        address: str = await self._ask(self._actor.expect.remote(device, index))
        return address

    async def hold(self, share: Share, members: Sequence[Mapping[str, Any]]) -> Held:
        """See `WorkerProcess.hold`."""
        held: Held = await self._ask(self._actor.hold.remote(share, members))
        return held

    async def report(self, seen: int) -> Report:
        """See `WorkerProcess.report`."""
        report: Report = await self._ask(self._actor.report.remote(seen))
        return report

    async def dismiss(self, finish: Finish) -> None:
        """See `WorkerProcess.dismiss`."""
        await self._ask(self._actor.dismiss.remote(finish))

    async def farewell(self, reason: str) -> None:
        """See `WorkerProcess.farewell`."""
        await self._ask(self._actor.farewell.remote(reason))

    async def _ask(self, answer: Any) -> Any:
        """Waits for an answer.

        Raises:
          CutlayerError: What the worker raised.
          WorkerLost: It died once too often.
        """
        try:
            return await answer
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, CutlayerError) else error) from None
        except RayActorError as error:
            raise WorkerLost(
                f"worker {self._number}: expected it to live, got {' '.join(str(error).split())}. The checkpoint is "
                "whole: see to the cause, then go on with --resume."
            ) from error


def _small(setup: Setup) -> bytes:
    """The setup in fewer bytes than the 100 KB up to which Ray keeps what an actor is begun with, and so can begin it
    again."""
    return zlib.compress(pickle.dumps(setup))


def _threads(number: int) -> int:
    """Workers share the cores; each takes its part, unless somebody has said how many threads it shall have."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else max(1, usable_cores() // number)
