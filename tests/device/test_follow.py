"""Round after round: what a device does with each message that opens, ends or crosses a round."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cutlayer.device.follow import ends, follow
from cutlayer.errors import WireError
from cutlayer.fleet.clock import run_virtual
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Assignment, Close, Facts, Finish, Gradients, Message, Update
from ends import ScriptedLink

FINISH = Finish("run", 9, "done")


class Worker:
    """A device that counts rounds, and whose work ends as it is told to."""

    name = "device-0"

    def __init__(self, ended: Sequence[Message | None]) -> None:
        self._ended, self.worked = list(ended), list[int]()

    async def work(self, assignment: Assignment) -> Message | None:
        self.worked.append(assignment.round)
        return self._ended.pop(0) if self._ended else None

    def update(self) -> Update:
        return Update("run", self.worked[-1], self.name, {}, 0, 0, 0, 0.0, 0.0)


def told(round: int) -> Assignment:
    return Assignment("run", round, "device-0", DevicePlan("device-0"), (0.1,), {})


def close(round: int, *, wanted: bool = True) -> Close:
    return Close("run", round, wanted, "deadline")


def followed(says: Sequence[Message], ended: Sequence[Message | None] = ()) -> tuple[list[int], list[int]]:
    """The rounds that were worked in, and those of which an update was sent."""
    worker, link = Worker(ended), ScriptedLink(says, hasty=True)
    run_virtual(follow(link, worker, worker.work, worker.update))  # type: ignore[arg-type]
    assert all(isinstance(message, Update) for message in link.messages)
    return worker.worked, [message.round for message in link.messages]


def test_each_assignment_is_worked_on_and_answered() -> None:
    assert followed([told(0), told(1), told(5), FINISH]) == ([0, 1, 5], [0, 1, 5])
    assert followed([FINISH]) == ([], [])


def test_a_round_that_was_closed_is_answered_where_that_is_wanted() -> None:
    assert followed([told(0), told(1), FINISH], [close(0), None]) == ([0, 1], [0, 1])
    assert followed([told(0), told(1), FINISH], [close(0, wanted=False), None]) == ([0, 1], [1])


def test_what_ended_a_round_may_open_the_next_or_be_the_last_word() -> None:
    assert followed([told(0), FINISH], [told(2), None]) == ([0, 2], [2])
    assert followed([told(0)], [FINISH]) == ([0], [])


def test_a_close_that_crossed_an_update_is_no_news() -> None:
    assert followed([told(0), close(0), close(0, wanted=False), FINISH]) == ([0], [0])


def test_a_talk_may_make_its_own_update() -> None:
    worker, link = Worker(()), ScriptedLink([told(0), FINISH])
    own = Update("run", 0, "device-0", {}, 3, 1, 1, 0.5, 0.0)
    run_virtual(follow(link, worker, worker.work, lambda: own))  # type: ignore[arg-type]
    assert link.messages == [own]


@pytest.mark.parametrize("stray", [Gradients("run", 0, 0, "device-0", None, 0.5), Facts("run", 0, 0, "device-0", {})])
def test_anything_else_is_an_error(stray: Message) -> None:
    with pytest.raises(WireError, match=f"expected an Assignment or Finish, got {type(stray).__name__}"):
        followed([stray])
    with pytest.raises(WireError, match="expected an Assignment or Finish"):
        followed([told(0), stray])


def test_what_ends_a_round() -> None:
    assert ends(close(0), told(0))
    assert ends(FINISH, told(0))
    assert ends(told(1), told(0))
    assert not ends(told(0), told(0))
    assert not ends(Gradients("run", 0, 0, "device-0", None, 0.5), told(0))
