"""A device's end of a link that tells a person what passes: two lines a round."""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.reading import counted
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Close, Finish, Gradients, Judged, Message, Update


class Told(Around):
    """A link with an ear for the few things that its device's owner wants to know.

    Args:
      link: The transport's end.
      rounds: Of the run, in all.
      tell: Takes a line.
      blocks: Of the model, in all, once it is read; None where nobody knows.
    """

    def __init__(
        self, link: Link, rounds: int, tell: Callable[[str], None], blocks: Callable[[], int] | None = None
    ) -> None:
        super().__init__(link)
        self._rounds, self._tell, self._blocks = rounds, tell, blocks
        self._losses: list[float] = []

    async def send(self, message: Message) -> None:
        """See `Link.send`."""
        await self._link.send(message)
        if isinstance(message, Update):
            # the server computed the losses, or this device did, or, where nothing comes down, nobody knows here
            losses = self._losses or ([message.loss] if message.steps else [])
            told = f", loss {sum(losses) / len(losses):.4f}" if losses else ""
            self._tell(f"{self._round(message)}: done, {counted(message.samples, 'sample')}{told}")

        elif isinstance(message, Judged):
            loss = f", loss {message.loss / message.weight:.4f}" if message.loss and message.weight else ""
            self._tell(
                f"after {message.round} of {self._rounds} rounds: {message.samples} held-out samples judged{loss}"
            )

    async def receive(self) -> Message:
        """See `Link.receive`."""
        message = await self._link.receive()
        if isinstance(message, Assignment):
            self._losses = []
            plan = message.plan
            self._tell(
                f"{self._round(message)}: {self._here(plan.cut)} here, {counted(plan.local_steps, 'step')} of "
                f"{counted(plan.batch_size, 'sample')}"
            )
        elif isinstance(message, Gradients):
            self._losses.append(message.loss)
        elif isinstance(message, Close):
            self._tell(f"{self._round(message)}: ended by the server: {message.reason}")
        elif isinstance(message, Finish):
            self._tell(message.reason)
        return message

    def _here(self, cut: int) -> str:
        return counted(cut, "block") if self._blocks is None else f"{cut} of {counted(self._blocks(), 'block')}"

    def _round(self, message: Message) -> str:
        return f"round {message.round + 1}/{self._rounds}"
