"""The commit points of a device: it begins a round from where the last of its rounds that counted has left it.

The server says which that was (`Assignment.counted`): it alone knows whether an update came in time. What the device
is after a round is kept before the first byte of its update leaves, so whatever happens to the device, to the server
or to the update, the two agree again when the next round begins:

    the update came too late, or never       the device goes back: no sample counts that did not count
    the server goes on from a checkpoint     so does the device, by as many rounds as the server keeps checkpoints
    the device was killed                    a new process goes on from what the old one kept

Kept are the point that the server named last, those before it to which the server might go back, and what came after.
"""

from __future__ import annotations

from dataclasses import replace

from cutlayer.device.device import Device
from cutlayer.device.store import Point, Store
from cutlayer.policies.moments import FreshMoments
from cutlayer.state import Keeper, State, joined
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Judge, Message, Update


class CommittingLink(Around):
    """A device's end of a link, below what packs its updates: it keeps a commit point before an update leaves.

    Args:
      link: The transport's end.
      store: Where commit points are kept.
      keep: How many checkpoints the server keeps: it may go on from any of them.
    """

    def __init__(self, link: Link, store: Store, keep: int = 1) -> None:
        super().__init__(link)
        self._earlier = max(1, keep - 1)
        self._store = store
        self._device: Device | None = None
        self._packing: Keeper | None = None
        self._at: Point | str = "unknown"  # the point at which the device is; unknown in the middle of a round
        self._restarted = True
        self._judged_on = set[str]()  # folds that the base has and no round was begun on

    def attach(self, device: Device, packing: Keeper) -> None:
        """Says whose commit points these are; the first is where the device is now, unless there are some.

        Args:
          device: The device; from now on it goes back before it begins a round.
          packing: What packs updates around this end, and owes what that lost.
        """
        self._device, self._packing = device, packing
        device.before_round, device.before_judging = self._go_back, self._fold_again
        if not self._store.points():
            self._store.save(None, self._state())

    async def send(self, message: Message) -> None:
        """See `Link.send`; of an update, the first byte leaves when what it goes with is kept."""
        if isinstance(message, Update):
            assert self._device is not None, "who sends an update has been attached"
            state = self._state()
            await self._device.machine.aside(lambda: self._store.save(message.round, state))
        await self._link.send(message)
        if isinstance(message, Update):
            self._at = message.round

    def _go_back(self, assignment: Assignment) -> Assignment:
        """The device as it was after the round that counted last; the assignment with all folds that it lacks.

        Raises:
          CheckpointError: That state is not there, or no state of this device and this run.
        """
        assert self._device is not None
        assert self._packing is not None
        counted = assignment.counted
        if self._at != counted:
            branches = self._store.load(counted).branches()
            self._device.load(branches["device"])
            self._packing.load(State() if assignment.plan.clause(FreshMoments) else branches["packing"])
        before = sorted((point for point in self._store.points() if _place(point) < _place(counted)), key=_place)
        self._store.keep({counted, *before[-self._earlier :]})
        self._at = "unknown"
        self._store.fold(assignment.folds)
        ahead, self._judged_on = self._judged_on - assignment.folds.keys(), set()
        if ahead:  # the server has gone back to before a fold that it had judged
            self._device.base.unfold()
        if self._restarted or ahead:  # its base is as it is stored, and the server does not know
            self._restarted = False
            return replace(assignment, folds=self._store.folds())
        return assignment

    def _fold_again(self, asked: Judge) -> None:
        """Brings the base of a process that has begun anew to where the device's last round found it. Folds that come
        with what is judged are the server's, but for the case that it goes back: a round has not been begun on them."""
        assert self._device is not None
        if self._restarted:
            self._device.base.fold(self._store.folds())
        self._judged_on |= asked.folds.keys()

    def _state(self) -> State:
        assert self._device is not None
        assert self._packing is not None
        return device_state(self._device, self._packing)


def device_state(device: Keeper, packing: Keeper) -> State:
    """The state that outlives a round on a device, with what packing its last update lost."""
    return joined({"device": device.state(), "packing": packing.state()})


def _place(point: Point) -> int:
    """The place of a point among the others: the start first."""
    return -1 if point is None else point
