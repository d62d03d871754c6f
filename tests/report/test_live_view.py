import io

from rich.console import Console

from cutlayer.report.live_view import MAX_LINES, live_view, round_text
from cutlayer.report.run_state import RunState
from cutlayer.types import Event


def lines(state: RunState, now: float) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=100).print(live_view(state, now))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_small_fleet_has_a_line_per_machine() -> None:
    state = RunState(3, 0, ("pi", "jetson-nano"), 50, started=0.0)
    state.saw(Event("pi", "upload", 0.0, 12.0, 0, 11))
    state.saw(Event("server", "backward", 12.0, 12.5, 0, 10, "jetson-nano"))
    shown = lines(state, now=30.0)
    assert shown[0].startswith("round 1/3  ")
    assert shown[0].endswith("30.0 s gone, left 12m 00s")
    assert shown[1:] == [
        "virtual 12.5 s",
        "  pi           uploading   step 12/50",
        "  jetson-nano  idle        step  0/50",
        "  server       backward    jetson-nano",
    ]


def test_a_large_fleet_is_summed_up_in_one_line() -> None:
    state = RunState(1, 0, tuple(f"d{index}" for index in range(MAX_LINES + 1)), 10, started=0.0)
    for index in range(MAX_LINES):
        state.saw(Event(f"d{index}", "wait" if index < 5 else "compress", 0.0, 1.0, 0, index))
    assert lines(state, now=1.0)[2:] == ["  13 devices: 7 compress, 5 waiting, 1 idle; step 0 to 10 of 10"]


def test_names_are_never_read_as_markup() -> None:
    state = RunState(1, 0, ("[red]pi[/red]",), 1, started=0.0)
    assert "[red]pi[/red]" in lines(state, now=0.0)[2]


def test_a_round_without_training_says_no_loss() -> None:
    state = RunState(1, 0, ("pi",), 1, started=0.0)
    state.finished({"round": 0, "loss": None, "samples": 0, "virtual_seconds": 2.0, "validation": {}}, now=4.0)
    assert str(round_text(state, 4.0)) == "round 1/1  virtual 2.0 s  0 samples/s  left 0 s"
