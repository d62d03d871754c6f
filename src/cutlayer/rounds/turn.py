"""One device's part of a round, as the server sees it: the same for every shape, with all that may happen on the way.

Assignment ->              the device begins
<- the messages of its local steps, in order; the shape takes each in
Close ->                   where the round ends early: what is done by then counts
<- Update                  it is accepted; or the device has left, and nobody waits for it
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from cutlayer.errors import DeviceGone, WireError
from cutlayer.server.server import Server
from cutlayer.types import DevicePlan
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Activations, Close, Update

Take = Callable[[Any], Awaitable[None]]


class Turn:
    """Holds one device's part of a round.

    Args:
      server: The server.
      link: Its end of the connection.
      device: What the device was given to do.
      kinds: Of the messages of a local step, in their order, each with the others that may come in its place; none
        where the device trains alone.
      ahead: How many steps the device may begin before the messages of an earlier one are all there.

    Attributes:
      late: whether the device was told to end early.
    """

    def __init__(
        self,
        server: Server,
        link: Link,
        device: DevicePlan,
        *kinds: type[Any] | tuple[type[Any], ...],
        ahead: int = 0,
    ) -> None:
        self._server, self._link, self._device, self._ahead = server, link, device, ahead
        self._kinds = [kind if isinstance(kind, tuple) else (kind,) for kind in kinds]
        self._local_steps = device.local_steps if kinds else 0
        self._came = [0] * len(kinds)  # of each kind, steps of which it has come
        self._micro_batch = 0
        self.late = False

    @property
    def step(self) -> int:
        """The first local step of which a message is missing."""
        return self._came[-1] if self._came else 0

    @property
    def all_steps_came(self) -> bool:
        """Whether only the update is missing."""
        return self.step == self._local_steps

    async def hold(
        self,
        take: Take | None = None,
        *,
        closing: Callable[[], Awaitable[None]] | None = None,
        finish: Callable[[Update], Awaitable[Update]] | None = None,
        gone: Callable[[], None] = lambda: None,
    ) -> bool:
        """Returns when the device's update was accepted, or the device has left: whether it stayed.

        Args:
          take: Takes in a message of a local step.
          closing: Settles what is under way before the device is told to end early.
          finish: Makes of the update what counts, where a device sends less than what it trained.
          gone: Called when the device has left.

        Raises:
          WireError: A message has no place here.
        """
        try:
            await self._link.send(self._server.assignment(self._device))
            while not isinstance(message := await self._link.receive(), Update):
                if isinstance(message, Close):
                    self.late = True
                    if closing is not None:
                        await closing()
                    await self._link.send(message)
                    continue
                self._advance(message)
                if take is not None:
                    await take(message)
            if not (self.late or self.all_steps_came):
                raise self._unexpected(message)
            self._server.accept(message if finish is None else await finish(message), late=self.late)
            return True
        except DeviceGone:
            self._server.leave(self._device.device)
            gone()
            return False

    def _advance(self, message: Any) -> None:
        """Counts a message of a step, or of a part of a batch, if it is the next."""
        place = next((place for place in self._awaited() if isinstance(message, self._kinds[place])), None)
        if place is None or message.step != self._came[place]:
            raise self._unexpected(message)
        if isinstance(message, Activations):
            if message.micro_batch != self._micro_batch:
                raise self._unexpected(message)
            self._micro_batch = 0 if message.ends_step else message.micro_batch + 1
            if not message.ends_step:
                return
        self._came[place] += 1

    def _awaited(self) -> list[int]:
        """The places in the order of a step whose message may come now."""
        steps, may = self._came, list[int]()
        for place in range(len(self._kinds)):
            most = min(self._local_steps, self.step + self._ahead + 1) if place == 0 else steps[place - 1]
            if steps[place] < most:
                may.append(place)
        return may

    def _unexpected(self, message: object) -> WireError:
        awaited = [f"{self._kinds[place][0].__name__} of step {self._came[place]}" for place in self._awaited()]
        return unexpected(self._device.device, " or ".join(awaited) or "an Update", message)
