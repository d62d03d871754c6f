"""The agent: a device's connection to its server, for as long as there is a run. It comes, and when it is lost it comes
again.

    dial -> Hello -> Welcome -> (prepare, once) -> Ready -> Stand -> the session, until the connection is lost -> dial

A server of several processes answers the first hello with `Elsewhere`: the device dials there and says hello again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import Protocol, TypeVar

import torch

from cutlayer import __version__
from cutlayer.device.probe import LinkRates, link_rates
from cutlayer.errors import Declined, JoinError, WireError
from cutlayer.fleet.clock import now
from cutlayer.transport.carrier import Carrier, CarrierLost, Dial
from cutlayer.transport.handshake import hear, say, say_goodbye
from cutlayer.transport.session import Session, Standing
from cutlayer.wire.messages import (
    FINISHED,
    Answer,
    Ask,
    Elsewhere,
    Handshake,
    Hello,
    Message,
    Ready,
    Refusal,
    SiteHello,
    Stand,
    Welcome,
)

T = TypeVar("T", Welcome, Welcome | Elsewhere, Answer, Stand)

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
"""A try costs next to nothing, and a server that is back waits for everybody."""
ANSWER_SECONDS = 60.0
"""Seconds for an answer of the handshake: a piece of a model over a slow link takes the longest."""
GOODBYE_SECONDS = 5.0
ECHO_BYTES = 2**19
ECHOES = 3

Asking = Callable[[Ask], Awaitable[Answer]]


async def nothing_wrong() -> None:
    """Looks at nothing."""


class Attendance(Protocol):
    """A device that has its data and its part of the model.

    Attributes:
      ready: what it says of itself; how it stands is filled in.
      session: its session.
    """

    @property
    def ready(self) -> Ready: ...

    @property
    def session(self) -> Session: ...

    async def converse(self) -> None:
        """Takes part in rounds until the server says that the run is over."""


Prepare = Callable[[Welcome, Asking], Awaitable[Attendance]]
Notice = Callable[[str], None]
Wrong = Callable[[], Awaitable[str | None]]
SAID_AGAIN_SECONDS = 60.0
"""Seconds between two lines that say the same of a server that does not answer."""


class _RunOver(Exception):
    """The server says that there is nothing more to do."""


class Agent:
    """Attends a run.

    Args:
      name: The device's.
      dial: Opens a connection.
      prepare: Gets ready, once, when the server has said what the run is.
      random: For the jitter of waiting: devices that lost one server do not come back all at once.
      notice: Told what happens, for a person to read.
      patience_seconds: How long to try to reach a server that does not answer.
      wrong: Looks, after a connection that came to nothing, for what only a person can mend; believed when it says
        the same twice in a row.
      hello: What it says first; None for a device's.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        prepare: Prepare,
        random: Random,
        notice: Notice,
        patience_seconds: float,
        wrong: Wrong = nothing_wrong,
        hello: SiteHello | None = None,
    ) -> None:
        self._hello = hello or Hello(name, __version__)
        self._name, self._dial, self._prepare, self._random = name, dial, prepare, random
        self._notice, self._patience_seconds, self._wrong = notice, patience_seconds, wrong
        self._told, self._told_at = "", 0.0
        self._attendance: Attendance | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._run = ""

    async def attend(self) -> None:
        """Takes part until the run is over.

        Raises:
          JoinError: The server refuses, or there is none.
          UserError: Something else that a person must change.
        """
        tries, heard = 0, now()
        suspected: str | None = None
        try:
            while True:
                before, self._attended = now(), False
                try:
                    async with _welcomed(self._hello, self._dial) as (carrier, welcome):
                        return await self._talk(carrier, welcome)
                except _RunOver:
                    return None
                except WireError as error:
                    lost = error
                if self._attended:
                    tries, heard = 0, now()
                elif now() - before > LONGEST_WAIT_SECONDS:
                    tries = 0
                wrong = None if self._attended else await self._wrong()
                if wrong is not None and wrong == suspected:
                    raise JoinError(wrong)
                suspected = wrong  # for now: a server that dies at that moment hangs up as well
                if now() - heard > self._patience_seconds:
                    raise JoinError(
                        f"join: expected an answer of the server within {self._patience_seconds:g} s, got "
                        f"{lost}. Check the address and that the server runs."
                    )
                tries += 1
                longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(tries, 10))
                wait = self._random.uniform(longest / 2, longest)
                self._say_once(f"{str(lost).rstrip('.')}. Trying again, for up to {self._patience_seconds:g} s.")
                await asyncio.sleep(wait)
        finally:
            if self._conversation is not None and not self._conversation.done():
                self._conversation.cancel()
                await asyncio.gather(self._conversation, return_exceptions=True)

    def _say_once(self, line: str) -> None:
        """Says what is the matter, when it begins and then once a minute."""
        if line != self._told or now() - self._told_at >= SAID_AGAIN_SECONDS:
            self._told, self._told_at = line, now()
            self._notice(line)

    async def _talk(self, carrier: Carrier, welcome: Welcome) -> None:
        """One connection; returns when the run is over."""
        if self._attendance is None or welcome.run != self._run:
            try:
                await self._begin(welcome, carrier)
            except Declined as declined:
                await _part(carrier, declined, asyncio.ensure_future(_until_closed(carrier)))
                raise
        attendance, conversation = self._attendance, self._conversation
        assert attendance is not None
        assert conversation is not None
        mine = attendance.session.standing
        ready = replace(attendance.ready, session=mine.name, next_round=mine.round + 1, received=mine.received)
        stand = await _exchange(carrier, ready, Stand)
        self._attended = True
        self._told = ""
        self._notice("connected")
        standing = Standing(stand.session, stand.next_round - 1, stand.received)
        attached = asyncio.ensure_future(attendance.session.attach(carrier, standing))
        try:
            await asyncio.wait({attached, conversation}, return_when=asyncio.FIRST_COMPLETED)
            if conversation.done():
                if error := conversation.exception():
                    if isinstance(error, WireError):  # it begins again, from what is kept: as after a restart
                        self._attendance, self._attended = None, False
                    await _part(carrier, error, attached)
                    raise error
                return
            attached.result()
        finally:
            attached.cancel()
            await asyncio.gather(attached, return_exceptions=True)

    async def _begin(self, welcome: Welcome, carrier: Carrier) -> None:
        """Gets ready for a run that this device does not know."""
        if self._conversation is not None:
            self._conversation.cancel()
            await asyncio.gather(self._conversation, return_exceptions=True)
            self._attendance = self._conversation = None
        self._notice(f"run {welcome.run}: preparing")
        attendance = await self._prepare(welcome, lambda ask: _exchange(carrier, ask, Answer))
        self._attendance, self._run = attendance, welcome.run
        self._conversation = asyncio.create_task(attendance.converse(), name=f"{self._name} converses")


async def _part(carrier: Carrier, error: BaseException, reading: asyncio.Future[None]) -> None:
    """Tells the server why the connection ends, and whether the owner wants it so; one that does not read is left.

    Args:
      carrier: The connection.
      error: Why.
      reading: Ends with the connection: a server that was declined closes it when it has heard so.
    """
    declined = isinstance(error, Declined)
    with contextlib.suppress(CarrierLost, TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            await say_goodbye(carrier, str(error), declined=declined)
            if declined:
                await asyncio.wait({reading})
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def _until_closed(carrier: Carrier) -> None:
    """Reads what nobody wants any more, until the connection ends."""
    while True:
        await carrier.receive()


@contextlib.asynccontextmanager
async def _welcomed(hello: Hello | SiteHello, dial: Dial) -> AsyncIterator[tuple[Carrier, Welcome]]:
    """A connection on which the device is welcome: to the server, or to where the server sends it on to.

    A device comes to the server itself every time, which knows where it belongs by then.
    """
    carrier = await dial()
    try:
        answer: Welcome | Elsewhere = await _exchange(carrier, hello, Welcome, Elsewhere)
        if isinstance(answer, Welcome):
            yield carrier, answer
            return
    finally:
        carrier.close()
    carrier = await dial(answer.address)
    try:
        yield carrier, await _exchange(carrier, hello, Welcome)
    finally:
        carrier.close()


async def _exchange(carrier: Carrier, message: Handshake, *expected: type[T]) -> T:
    """Says something and waits for the answer.

    Raises:
      JoinError: The server refuses for good.
      CarrierLost: It cannot answer now.
    """
    await say(carrier, message)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer: Message | Handshake = await hear(carrier)
    except TimeoutError:
        raise CarrierLost(f"connection: expected an answer within {ANSWER_SECONDS:g} s, got none.") from None
    if isinstance(answer, Refusal):
        if answer.reason == FINISHED:
            raise _RunOver
        if answer.final:
            raise JoinError(answer.sentence)
        raise CarrierLost(answer.sentence)
    if not isinstance(answer, expected):
        raise CarrierLost(f"connection: expected {expected[0].__name__}, got {type(answer).__name__}.")
    return answer


@contextlib.asynccontextmanager
async def asking(name: str, dial: Dial, hello: SiteHello | None = None) -> AsyncIterator[Asking]:
    """A connection for questions alone, beside the one on which the device attends.

    Args:
      name: The device's.
      dial: Opens a connection.
      hello: As of `Agent`.

    Raises:
      CarrierLost: None can be had, or it was lost.
    """
    async with _welcomed(hello or Hello(name, __version__), dial) as (carrier, _):
        yield lambda ask: _exchange(carrier, ask, Answer)


async def measure_link(ask: Asking) -> LinkRates:
    """Times a few transfers each way.

    Args:
      ask: Asks the server.
    """

    async def seconds(question: Ask) -> float:
        start = now()
        await ask(question)
        return now() - start

    load = torch.zeros(ECHO_BYTES, dtype=torch.uint8)
    trips = [await seconds(Ask("echo")) for _ in range(ECHOES)]
    up = [(ECHO_BYTES, await seconds(Ask("echo", body=load))) for _ in range(ECHOES)]
    down = [(ECHO_BYTES, await seconds(Ask("echo", length=ECHO_BYTES))) for _ in range(ECHOES)]
    return link_rates(up, down, trips)
