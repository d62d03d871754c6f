"""What is said on a connection before messages of a round pass: one asks, the other answers, nothing is kept.

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


async def say(carrier: Carrier, message: Handshake) -> None:
    """Sends one message of the handshake."""
    frame = encode(message)
    packet = Packet(Kind.HANDSHAKE, total=len(frame), body=frame)
    await carrier.send(pack(packet, check=not carrier.intact))


async def hear(carrier: Carrier) -> Message | Handshake:
    """Waits for the next one.

    Raises:
      CarrierLost: The connection ended; its reason, where the other end gave one.
      MalformedMessage: Something else arrived.
    """
    packet = unpack(await carrier.receive(), check=not carrier.intact)
    if packet.kind is Kind.GOODBYE:
        raise CarrierLost(f"connection: {bytes(packet.body[:500]).decode(errors='replace')}")
    if packet.kind is not Kind.HANDSHAKE:
        raise WireError(f"handshake: expected an answer, got a packet of kind {packet.kind.name.lower()}.")
    return decode(packet.body, max_bytes=PIECE_BYTES)


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


async def say_goodbye(carrier: Carrier, reason: str) -> None:
    """Tells the other end why the connection ends."""
    words = reason.encode()[:500]
    await carrier.send(pack(Packet(Kind.GOODBYE, total=len(words), body=words), check=not carrier.intact))
