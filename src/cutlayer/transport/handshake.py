"""The talk on a connection before messages of a round pass: one asks, the other answers, nothing is kept.

device                                  server
Hello(version, name)          ->
                              <-        Welcome(run, terms)        or Refusal
Ask(what)                     ->                                   any number: a link's rate, pieces of the model
                              <-        Answer
Ready(what it is, how it stands) ->
                              <-        Standing of the server     from here on: `session.py`
"""

from __future__ import annotations

from cutlayer.errors import Refused, WireError
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.packets import PIECE_BYTES, Kind, Packet, pack, unpack
from cutlayer.wire.frames import decode, encode
from cutlayer.wire.messages import Handshake, Hello, Message, SiteHello

DECLINED = "declined"
"""The reason under which a server counts a device whose owner does not allow what it is asked for."""


async def say(carrier: Carrier, message: Handshake) -> None:
    """Sends one message of the handshake."""
    frame = encode(message)
    packet = Packet(Kind.HANDSHAKE, total=len(frame), body=frame)
    await carrier.send(pack(packet, check=not carrier.intact))


async def hear(carrier: Carrier) -> Message | Handshake:
    """Waits for the next message.

    Raises:
      CarrierLost: The connection ended; its reason, where the other end gave one.
      Refused: declined: the other end is a device whose owner does not allow what it is asked for.
      MalformedMessage: Something else arrived.
    """
    packet = unpack(await carrier.receive(), check=not carrier.intact)
    part(packet)
    if packet.kind is not Kind.HANDSHAKE:
        raise WireError(f"handshake: expected an answer, got a packet of kind {packet.kind.name.lower()}.")
    return decode(packet.body, max_bytes=PIECE_BYTES)


def part(packet: Packet) -> None:
    """Raises what a packet says that ends a connection; nothing for any other."""
    if packet.kind is Kind.GOODBYE:
        raise CarrierLost(f"connection: {_words(packet)}")
    if packet.kind is Kind.DECLINED:
        raise Refused(DECLINED, f"it declines: {_words(packet)}")


def expect_hello(message: Message | Handshake, device: str) -> Hello | SiteHello:
    """The hello of a device or a site.

    Raises:
      Refused: It is none, or not in the name that was proved.
    """
    if not isinstance(message, Hello | SiteHello):
        raise Refused("wrong-kind", f"device {device}: expected its hello, got {type(message).__name__}.")
    if message.device != device:
        raise Refused("wrong-name", f"device {device}: expected a hello in its own name, got another's. Use its own.")
    return message


async def say_goodbye(carrier: Carrier, reason: str, *, declined: bool = False) -> None:
    """Tells the other end why the connection ends.

    Args:
      carrier: The connection.
      reason: Why.
      declined: Whether it is for good: a device's owner does not allow what the server asks for.
    """
    words, kind = reason.encode()[:500], Kind.DECLINED if declined else Kind.GOODBYE
    await carrier.send(pack(Packet(kind, total=len(words), body=words), check=not carrier.intact))


def _words(packet: Packet) -> str:
    return bytes(packet.body[:500]).decode(errors="replace")
