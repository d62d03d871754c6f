"""The pieces of the model that each device may have from the server: those of the parts that it was given to hold.

Before its first round that is what no part goes without: the config, the tokenizer, the embeddings. With each
assignment, and each question that makes it judge, the blocks of that plan are its due as well. Whoever asks for more is
refused.
"""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.errors import Refused
from cutlayer.model.pieces import is_due
from cutlayer.types import DevicePlan
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Judge, Message

Part = tuple[int, int | None]
"""Blocks from the lowest, and the first block of the tail; None for no tail."""
BEFORE: Part = (0, None)


class Entitlement:
    """The parts of the model that every device of a run may have.

    Args:
      reads: Of a plan, what a device reads from the model's files (`Shape.reads`).
    """

    def __init__(self, reads: Callable[[DevicePlan], Part]) -> None:
        self._reads = reads
        self._parts: dict[str, set[Part]] = {}

    def granting(self, link: Link, device: str) -> Link:
        """An end of a device's link that notes what it is given to hold."""
        return _Granting(link, lambda part: self.grant(device, part), self._reads)

    def grant(self, device: str, part: Part) -> None:
        """The device is given this part to hold."""
        self._parts.setdefault(device, set()).add(part)

    def check_part(self, device: str, cut: int, top: int | None) -> None:
        """Raises Refused for a question for the pieces of a larger part than those that the device was given."""
        for most, tail in (BEFORE, *self._parts.get(device, ())):
            if cut <= most and (top is None or (tail is not None and top >= tail)):
                return
        raise _more(device, f"the part with cut {cut}{'' if top is None else f' and the tail from block {top}'}")

    def check_piece(self, device: str, name: str) -> None:
        """Raises Refused for a question for a piece of none of the parts that the device was given."""
        if not any(is_due(name, *part) for part in (BEFORE, *self._parts.get(device, ()))):
            raise _more(device, name)


class _Granting(Around):
    def __init__(self, link: Link, grant: Callable[[Part], None], reads: Callable[[DevicePlan], Part]) -> None:
        super().__init__(link)
        self._grant, self._reads = grant, reads

    async def send(self, message: Message) -> None:
        if isinstance(message, Judge):
            self._grant((message.plan.cut, message.plan.top))
        elif isinstance(message, Assignment):
            self._grant(self._reads(message.plan))
        await self._link.send(message)


def _more(device: str, what: str) -> Refused:
    return Refused(
        "not-planned",
        f"device {device}: expected a question for pieces of the parts that it was given, got one for {what}. Ask when "
        "the round that needs it begins.",
    )
