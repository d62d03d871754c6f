"""Frames that may be asked for again: on a device until they arrived, on the server until the round is done."""

from __future__ import annotations

from pathlib import Path

from cutlayer.transport.sent import Sent, Shelf


def bytes_of(sent: Sent, number: int) -> bytes:
    return b"".join(bytes(part) for part in sent.frame(number))


def test_a_device_forgets_what_has_arrived() -> None:
    sent = Sent()
    assert [sent.add([b"a"]), sent.add([b"bb"]), sent.add([b"ccc"])] == [1, 2, 3]
    sent.handed = 3
    assert sent.under_way_bytes == 6
    sent.arrive(2)
    assert [sent.has(number) for number in (1, 2, 3)] == [False, False, True]
    assert sent.under_way_bytes == 3
    sent.arrive(99)
    assert sent.arrived == 3, "what was not sent cannot have arrived"


def test_what_the_other_end_has_from_an_earlier_life_is_not_kept() -> None:
    sent = Sent(arrived=2)
    for frame in (b"a", b"b", b"c"):
        sent.add([frame])
    assert [sent.has(number) for number in (1, 2, 3)] == [False, False, True]


def test_a_server_keeps_everything_and_puts_what_is_too_much_on_the_disk(tmp_path: Path) -> None:
    sent = Sent(shelf=Shelf(tmp_path / "scratch", 25))
    frames = [bytes([number]) * 10 for number in range(6)]
    for frame in frames:
        sent.arrive(sent.add([frame[:3], frame[3:]]))
    assert len(sent._on_disk) == 4
    assert [bytes_of(sent, number + 1) for number in range(6)] == frames
    sent.forget()
    assert not any(sent.has(number) for number in range(1, 7))


def test_what_is_kept_in_memory_is_that_of_all_sessions(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "scratch", 25)
    first, second = Sent(shelf=shelf), Sent(shelf=shelf)
    for sent in (first, second, first, second):
        sent.arrive(sent.add([bytes(10)]))
    assert shelf.held_bytes == 20
    assert len(first._on_disk) + len(second._on_disk) == 2
    first.forget()
    second.forget()
    assert shelf.held_bytes == 0


def test_what_is_sent_again_in_between_is_not_written_over(tmp_path: Path) -> None:
    sent = Sent(shelf=Shelf(tmp_path / "scratch", 5))
    for number in range(3):
        sent.arrive(sent.add([bytes([number]) * 10]))
    assert bytes_of(sent, 1) == bytes(10), "read from the beginning of the file"
    sent.arrive(sent.add([bytes([3]) * 10]))
    assert [bytes_of(sent, number + 1) for number in range(4)] == [bytes([number]) * 10 for number in range(4)]


def test_what_has_arrived_stays_so() -> None:
    sent = Sent()
    for frame in (b"a", b"b", b"c"):
        sent.add([frame])
    sent.arrive(3)
    sent.arrive(1)  # a word that was on its way for longer
    assert sent.arrived == 3


def test_nothing_is_due_of_a_round_that_a_server_has_forgotten(tmp_path: Path) -> None:
    at_the_server, at_the_device = Sent(shelf=Shelf(tmp_path, 100)), Sent()
    for sent in (at_the_server, at_the_device):
        sent.handed = sent.add([b"a"])
        assert sent.due == 1
        sent.forget()
    assert (at_the_server.due, at_the_device.due) == (0, 1)
