"""The device's end of each shape of a round: how it talks with its server, over all rounds, until the server is done.

What the server's end does is in `rounds/`; a `Round` names the conversation that belongs to it, and on a real fleet
the server tells the device the name. So a device runs every method, and holds the code of none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from cutlayer.device.ahead import Ahead
from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.errors import JoinError
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Assignment, Close, Finish, Gradients, Message

Conversation = Callable[[Link, Device], Coroutine[Any, Any, None]]


async def up_and_down(link: Link, device: Device) -> None:
    """Every local step sends activations up and waits for their gradient (`rounds/split.py`).

    In parts, if the plan says so, of which two may be under way:

        computes    forward 0   forward 1   backward 0   forward 2   backward 1   backward 2, step
        sends                   part 0      part 1                   part 2
        awaits                              answer 0                 answer 1     answer 2
    """

    async def work(assignment: Assignment) -> Message | None:
        if assignment.plan.in_flight == 1:
            return await steps(link, assignment)
        async with Ahead(link) as ahead:
            return await steps(ahead, assignment)

    async def steps(link: Link, assignment: Assignment) -> Message | None:
        behind = assignment.plan.in_flight - 1
        for step in range(assignment.plan.local_steps):
            num_parts = device.draw()
            for sends in range(num_parts + behind):
                if sends < num_parts:
                    await link.send(await device.forward(step, sends))
                awaits = sends - behind
                if awaits < 0:
                    continue
                answer = await link.receive()
                if _ends(answer, assignment):
                    device.take_back()
                    return answer
                if not isinstance(answer, Gradients) or (answer.step, answer.micro_batch) != (step, awaits):
                    raise unexpected(device.name, f"Gradients of step {step}", answer)
                await device.backward(answer)
        return None

    await _follow(link, device, work)


async def up(link: Link, device: Device) -> None:
    """Activations go up and nothing comes down (`rounds/stream.py`)."""
    await _stream(link, device, kept=False)


async def up_once(link: Link, device: Device) -> None:
    """The same; what was sent once is from then on only named."""
    await _stream(link, device, kept=True)


async def alone(link: Link, device: Device) -> None:
    """The device trains the whole model by itself and sends its adapter (`rounds/local.py`)."""

    async def work(assignment: Assignment) -> Message | None:
        heard.begin()
        for step in range(assignment.plan.local_steps):
            await device.train(step)
            if (ended := heard.waiting()) is not None:
                return ended
        return None

    async with Attentive(link) as heard:
        await _follow(heard, device, work)


CONVERSATIONS: Mapping[str, Conversation] = {
    conversation.__name__.replace("_", "-"): conversation for conversation in (up_and_down, up, up_once, alone)
}
"""By name."""


def conversation_by_name(name: str) -> Conversation:
    """The device's end that the server asks for.

    Raises:
      JoinError: This version has none of that name.
    """
    if name not in CONVERSATIONS:
        raise JoinError(
            f"join: expected one of the conversations {', '.join(CONVERSATIONS)}, got {name!r}. "
            "Install the server's version of cutlayer."
        )
    return CONVERSATIONS[name]


async def _stream(link: Link, device: Device, *, kept: bool) -> None:
    async def work(assignment: Assignment) -> Message | None:
        heard.begin()
        async with Ahead(heard) as ahead:
            for step in range(assignment.plan.local_steps):
                if (ended := heard.waiting()) is not None:
                    return ended
                await ahead.send(await device.stream(step, kept=kept))
        return heard.waiting()

    async with Attentive(link) as heard:
        await _follow(heard, device, work)


async def _follow(link: Link, device: Device, work: Callable[[Assignment], Awaitable[Message | None]]) -> None:
    """Round after round.

    Args:
      link: To the server.
      device: The device.
      work: Its steps of one round; returns None when they are done, or the message that ended them before: a `Close`,
        or what comes after a round that went on without this device.
    """
    message = await link.receive()
    while not isinstance(message, Finish):
        ended = None
        if isinstance(message, Assignment):
            device.begin(message)
            ended = await work(message)
            if ended is None or (isinstance(ended, Close) and ended.wanted):
                await link.send(device.update())
        elif not isinstance(message, Close):  # it asks for an update that was on its way
            raise unexpected(device.name, "an Assignment or Finish", message)
        message = await link.receive() if ended is None or isinstance(ended, Close) else ended


def _ends(message: Message, assignment: Assignment) -> bool:
    """Whether a message that comes to a device at work says that its round is over."""
    later = isinstance(message, Assignment) and message.round > assignment.round
    return later or isinstance(message, Close | Finish)
