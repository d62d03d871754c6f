"""A session: messages exactly once and in order, over carriers that break, lose and repeat. One is a `Link`.

    session      the frames of this round, numbered from 1 in each direction
    carrier      1 2 3 x            the connection breaks, or a packet is missing: it is dropped
    carrier            3 4 5        the next one begins with what each end has: nothing is lost, nothing counts twice

There is one way to recover: drop the connection, open another, say what one has, go on from there. Whatever does not
fit (a gap, a damaged packet, silence) ends the connection and is repaired by the next.

Numbers begin anew with every round, and with the judging before one (`turn_of`: here both are called rounds), because
rounds are where everything can be restored from. The server keeps the
frames that it sent in a round until the device's update is there. So a device that was killed can begin the round
again: it is given all of them again, and its own repeated ones are dropped by their numbers. Between a commit point and
the update a device is a function of what it receives, so what it sends again is what it sent before. A server that was
killed begins the round again under another name, and every device with it.

A round opens with the server's first message in it: `Assignment`, to a site `SiteRound`, or `Finish`; or, before any of
them, `Judge`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cutlayer.errors import WireError
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost, most_telling
from cutlayer.transport.handshake import part
from cutlayer.transport.packets import PIECE_BYTES, Buffer, Kind, Packet, cut, pack, unpack
from cutlayer.transport.sent import Sent, Shelf
from cutlayer.wire.frames import decode, parts
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    Close,
    Finish,
    Gradients,
    HeldOut,
    Hidden,
    HiddenGradients,
    Judge,
    Judged,
    Message,
    SiteReport,
    SiteRound,
    Update,
    passes_in_rounds,
)

OPENING = Judge, Assignment, SiteRound, Finish
"""Messages that may be the first of a round."""
JUDGING = Judge, HeldOut, Judged
"""Messages that belong to the judging before a round (`rounds/judging.py`)."""
ASKING = Judge, Assignment, SiteRound
"""Messages that open a round and are answered."""
CLOSING = Update, Judged, SiteReport
"""Messages that answer the asking ones at the end: nothing more comes of that round."""
UNDER_WAY = Activations, HeldOut, Hidden, HiddenGradients, Gradients
"""Messages that their sender need not wait for: they may be on their way still."""
HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 30.0
"""Seconds without a word from a peer whose connection stands: it is stuck. A frozen or vanished one is noticed by the
carrier, which pings below our event loop (`grpc_carrier.py`); this is for one that answers pings and nothing else."""
ACK_BYTES = 4 * 2**20
"""Bytes that may have been received without telling the sender, who holds on to them."""
WINDOW_BYTES = 32 * 2**20
"""Bytes that may be under way: then the sender waits."""
INBOX_MESSAGES = 2
"""Messages that wait to be taken: then nothing more is read, and the sender's way fills up."""


def turn_of(message: Message) -> int:
    """The turn that a message belongs to: of round r it is 2 r + 1, of the judging before it 2 r.

    A device that begins a round again sends what it sent before. Whether it judges to the end hangs on the clock, so
    what it says of that has numbers of its own.
    """
    return 2 * message.round + (not isinstance(message, JUDGING))


@dataclass(frozen=True, slots=True)
class Standing:
    """The point that an end has reached in a turn: what the other may skip.

    Attributes:
      name: of the server's life; empty on a device that was never connected.
      round: the number of the turn (`turn_of`); -1 before the first.
      received: frames of it that have been received whole.
    """

    name: str = ""
    round: int = -1
    received: int = 0


class Session:
    """One end of the conversation between a device and the server.

    Args:
      name: Of the server's life, on the server; a device learns it when it attaches.
      limit_bytes: The longest frame that may arrive at this moment.
      incoming: What all sessions of this process may hold of frames that are not whole yet.
      outgoing: What all sessions of this process may hand to their carriers at a time.
      shelf: The server's: where what all its sessions sent in a round is kept.
    """

    def __init__(
        self,
        name: str = "",
        *,
        limit_bytes: Callable[[], int],
        incoming: Budget,
        outgoing: Budget,
        shelf: Shelf | None = None,
    ) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.counts: Counter[str] = Counter()
        self.last_seen = -float("inf")
        self.piece_bytes = PIECE_BYTES
        self._listening_since = float("inf")  # while nothing is read: for ever
        self._is_server, self._name = shelf is not None, name
        self._limit_bytes, self._shelf = limit_bytes, shelf
        self._incoming, self._outgoing = incoming, outgoing
        self._round, self._received = -1, 0
        self._sent = self._new_sent()
        self._turns = self._heard = 0  # rounds opened; which of them whoever sends here knows of
        self._run = ""
        self._answered = True  # whether nothing more is to come from this end in the round under way
        self._peer = Standing()
        self._partial: memoryview | None = None
        self._filled = 0
        self._told = 0  # bytes received since the other end was last told
        self._beat_due = True
        self._inbox: deque[tuple[Message, int]] = deque()
        self._news = asyncio.Event()  # for the pump: something to send, or to acknowledge
        self._progress = asyncio.Event()  # for senders: something left or arrived
        self._arrival = asyncio.Event()  # for receivers
        self._room = asyncio.Event()  # for the pump: the inbox is not full
        self._gone: WireError | None = None
        self._attaching = asyncio.Lock()  # a carrier that is replaced is let go of before the next is used

    # ------------------------------------------------------------------ the link

    async def send(self, message: Message) -> None:
        """See `Link.send`: returns when a carrier has taken the frame, or its round is over and nobody wants it.

        What belongs to a step may be on its way there still, as long as the carrier has all before it: whoever sends
        it goes on to wait for the answer.

        Raises:
          WireError: What `give_up` said.
        """
        if self._is_server and isinstance(message, OPENING):
            if turn_of(message) != self._round:
                self._turn(turn_of(message))
            self._heard, self._gone = self._turns, None
            self._inbox.clear()  # what came too late
            self._room.set()
        self._raise_if_gone()
        if self._heard != self._turns or not self._is_of_this_turn(message):
            self.counts["stale"] += 1
            return
        if not self._is_server and isinstance(message, CLOSING):
            self._answered = True
        frame, sent = parts(message), self._sent
        number = sent.add(frame)
        self._news.set()
        needed = number - isinstance(message, UNDER_WAY)
        while sent is self._sent and (sent.handed < needed or sent.under_way_bytes > WINDOW_BYTES):
            self._progress.clear()
            await self._progress.wait()
            self._raise_if_gone()
        self.bytes_sent += sum(len(part) for part in frame)

    async def receive(self) -> Message:
        """See `Link.receive`.

        Raises:
          WireError: What `give_up` said.
        """
        while not self._inbox:
            self._raise_if_gone()
            self._arrival.clear()
            await self._arrival.wait()
        self._raise_if_gone()
        message, length = self._inbox.popleft()
        self._room.set()
        self.bytes_received += length
        if not self._is_server and isinstance(message, OPENING):
            self._heard = self._turns
        return message

    def give_up(self, reason: WireError) -> None:
        """Expects nothing more of the other end in this round: whoever waits for it is told so."""
        self._gone = reason
        self._arrival.set()
        self._progress.set()

    @property
    def standing(self) -> Standing:
        return Standing(self._name, self._round, self._received)

    # ------------------------------------------------------------------ the carrier

    async def attach(self, carrier: Carrier, peer: Standing) -> None:
        """Talks over this carrier until it is lost.

        Args:
          carrier: A connection on which both ends have just said how they stand.
          peer: How the other end stands.

        Raises:
          CarrierLost: It ended, or something is missing; the session goes on with the next one.
          WireError: What arrived may not be believed.
        """
        async with self._attaching:
            self._meet(peer)
            self._listening_since = float("inf")
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pump(carrier))
                    tasks.create_task(self._drain(carrier))
                    tasks.create_task(self._beat())
            except* WireError as group:
                raise most_telling(group) from None
            finally:
                self._drop_partial()

    def _meet(self, peer: Standing) -> None:
        """Takes in how the other end stands: what it has need not be sent again."""
        if not self._is_server and peer.name != self._name:
            self._leave_round()
            self._name, self._round, self._received, self._sent = peer.name, -1, 0, self._new_sent()
            self._turns += 1
        self._peer = peer
        same = peer.name == self._name and peer.round == self._round
        if same:
            self._sent.arrive(peer.received)
        self._sent.handed = peer.received if same else 0
        if not self._is_server and not same:
            self._sent.handed = self._sent.last  # the server has left this round: nobody wants it
        self._drop_partial()
        self.last_seen = _now()
        self._progress.set()

    async def _pump(self, carrier: Carrier) -> None:
        """Sends what there is to send, and a heartbeat when it is time for one or much has come in."""
        self._beat_due = True
        while True:
            sent = self._sent
            number = sent.handed + 1
            if number <= sent.last:
                if sent.has(number):
                    await self._hand_over(carrier, sent, number)
                sent.handed = max(sent.handed, number)
                self._progress.set()
            if self._beat_due or self._told >= ACK_BYTES:
                self._beat_due, self._told = False, 0
                beat = Packet(Kind.HEARTBEAT, self._round, self._sent.due, self._received)
                await carrier.send(pack(beat, check=not carrier.intact))
            if self._sent.handed >= self._sent.last and not self._beat_due and self._told < ACK_BYTES:
                self._news.clear()
                await self._news.wait()

    async def _beat(self) -> None:
        """Wants a heartbeat now and then, and notices silence: a time-out for every packet would cost much more."""
        while _now() - self._listening_since < SILENCE_SECONDS:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._beat_due = True
            self._news.set()
        raise CarrierLost(f"connection: expected a heartbeat, got nothing for {SILENCE_SECONDS:g} s.")

    async def _hand_over(self, carrier: Carrier, sent: Sent, number: int) -> None:
        frame = sent.frame(number)
        total, round = sum(len(part) for part in frame), self._round
        await self._outgoing.take(total)
        try:
            for offset, piece in cut(frame, self.piece_bytes):
                if sent is not self._sent:
                    return  # the round is over
                packet = Packet(Kind.DATA, round, number, self._received, offset, total)
                self._told = 0
                await carrier.send(pack(packet, check=not carrier.intact, pieces=piece))
        finally:
            self._outgoing.give_back(total)

    async def _drain(self, carrier: Carrier) -> None:
        """Takes in what arrives."""
        while True:
            while len(self._inbox) >= INBOX_MESSAGES:
                self._room.clear()
                await self._room.wait()
            self._listening_since = _now()
            arrived = await carrier.receive()
            self.last_seen, self._listening_since = _now(), float("inf")
            packet = unpack(arrived, check=not carrier.intact)
            part(packet)
            if packet.round > self._round:
                if packet.kind is Kind.HEARTBEAT and packet.number == 0:
                    continue  # of a round that is done, and that this end never knew
                self._open(packet)
            if packet.round < self._round:
                self.counts["late"] += packet.kind is Kind.DATA
                continue
            self._sent.arrive(packet.received)
            self._progress.set()
            if packet.kind is Kind.HEARTBEAT:
                if packet.number > self._received:
                    raise CarrierLost(f"connection: expected frame {self._received + 1}, got none. A packet was lost.")
            elif packet.kind is Kind.DATA:
                await self._take(packet)
            else:
                raise CarrierLost(f"connection: expected data, got a packet of kind {packet.kind.name.lower()}.")

    def _open(self, packet: Packet) -> None:
        """A round that this end does not know: only a device is told of one, and its first frame opens it."""
        if self._is_server or packet.kind is Kind.HEARTBEAT or packet.number != 1 or packet.offset:
            raise CarrierLost(
                f"connection: expected turn {self._round}, got turn {packet.round} without its first frame."
            )
        self._leave_round()
        self._turn(packet.round)

    async def _take(self, packet: Packet) -> None:
        """One piece of a frame: the next one, or one that was there before."""
        if packet.number <= self._received:
            self.counts["repeated"] += 1
            return
        if packet.number != self._received + 1 or packet.offset != self._filled:
            raise CarrierLost(
                f"connection: expected frame {self._received + 1} from byte {self._filled}, "
                f"got frame {packet.number} from byte {packet.offset}. A packet was lost."
            )
        limit = self._limit_bytes()
        if packet.total > limit:
            raise WireError(f"frame: expected at most {limit} bytes, got {packet.total}. The plan allows no more.")
        if len(packet.body) == packet.total:
            frame: Buffer = packet.body
        else:
            if self._partial is None:
                await self._incoming.take(packet.total)
                self._partial = np.empty(packet.total, np.uint8).data  # a bytearray is filled with zeros first
            elif len(self._partial) != packet.total:
                raise CarrierLost(f"connection: expected a frame of {len(self._partial)} bytes, got {packet.total}.")
            self._partial[self._filled : self._filled + len(packet.body)] = packet.body
            self._filled += len(packet.body)
            if self._filled < packet.total:
                return
            frame = self._partial
            self._drop_partial()
        message = decode(frame, max_bytes=limit)
        if not passes_in_rounds(message) or not self._is_of_this_turn(message):
            raise WireError(f"message: expected one of round {packet.round // 2}, got {type(message).__name__}.")
        self._received += 1
        self._told += packet.total
        if self._told >= ACK_BYTES:
            self._news.set()
        if isinstance(message, ASKING):
            self._answered, self._run = False, message.run
        if isinstance(message, Close) and not message.wanted:
            self._answered = True  # nothing is to come
        if self._is_server and isinstance(message, CLOSING):
            self._sent.forget()  # the round is done: a device that begins again begins the next
        self._inbox.append((message, packet.total))
        self._arrival.set()

    # ------------------------------------------------------------------ rounds

    def _turn(self, round: int) -> None:
        """A round opens: numbers begin anew. What a peer said it has of it need not be sent again."""
        self._turns += 1
        self._round, self._received, self._gone = round, 0, None
        self._sent.forget()
        known = self._peer.received if not self._is_server and self._peer.round == round else 0
        self._sent = self._new_sent(known)
        self._drop_partial()
        self._progress.set()

    def _is_of_this_turn(self, message: Message) -> bool:
        """Whether a message belongs to what is under way. Two kinds say only of which round they are."""
        if isinstance(message, Hidden | Close):
            return message.round == self._round // 2
        return turn_of(message) == self._round

    def _leave_round(self) -> None:
        """The device's end: the server has gone on. Whoever is in the middle of a round here is told to end it."""
        if not self._answered:
            self._answered = True
            close = Close(self._run, self._round // 2, wanted=False, reason="the server has gone on without it")
            self._inbox.append((close, 0))
            self._arrival.set()

    def _new_sent(self, arrived: int = 0) -> Sent:
        return Sent(shelf=self._shelf, arrived=arrived)

    def _drop_partial(self) -> None:
        if self._partial is not None:
            self._incoming.give_back(len(self._partial))
        self._partial, self._filled = None, 0

    def _raise_if_gone(self) -> None:
        if self._gone is not None:
            raise self._gone


def _now() -> float:
    return asyncio.get_running_loop().time()
