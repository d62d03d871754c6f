"""The display of a running training: the run's line, and below it what each machine is doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cutlayer.report.activities import SERVER
from cutlayer.report.human import human_seconds
from cutlayer.report.run_state import RunState

MAX_LINES = 12  # with more devices than this, one line says how many do what

STATES = {  # Event.what -> what the display calls it, and its style
    "forward": ("forward", "blue"),
    "backward": ("backward", "yellow"),
    "step": ("updating", "magenta"),
    "upload": ("uploading", "green"),
    "download": ("downloading", "green"),
    "wait": ("waiting", "dim"),
    "aggregate": ("aggregating", "red"),
}
IDLE = ("idle", "dim")


def live_view(state: RunState, now: float) -> RenderableType:
    """The whole display at wall time `now`."""
    head = Table.grid(padding=(0, 2, 0, 0), expand=False)
    bar = ProgressBar(total=state.num_rounds, completed=state.rounds_elapsed(), width=36)
    head.add_row(Text(round_of(state), style="bold"), bar, Text(times(state, now), style="dim"))
    lines = _device_lines(state) if len(state.devices) <= MAX_LINES else [_fleet_line(state)]
    return Group(head, Text("  ".join(numbers(state, virtual=True))), *lines)


def round_text(state: RunState, now: float) -> Text:
    """One plain line on the round that has just ended."""
    words = [f"round {state.rounds_done}/{state.num_rounds}", *numbers(state, virtual=True, last=False)]
    return Text("  ".join([*words, left(state, now)]))


def under_way_text(state: RunState, now: float) -> str:
    """`in round 3/10  12 steps on devices  1m 05s gone`: how far the round under way is.

    Devices may be steps ahead of the server, so this says no time that is left.
    """
    gone = f"{human_seconds(round(now - state.started))} gone"
    if state.rounds_done >= state.num_rounds:
        return f"all rounds are done  {gone}"
    return "  ".join([f"in {round_of(state)}", f"{state.steps_begun()} steps on devices", gone])


def round_of(state: RunState) -> str:
    """`round 3/10`: the one under way."""
    return f"round {min(state.rounds_done + 1, state.num_rounds)}/{state.num_rounds}"


def left(state: RunState, now: float, elapsed: float | None = None) -> str:
    """`left 3m 20s`; `elapsed` as in `RunState.seconds_left`."""
    seconds = state.seconds_left(now, elapsed)
    return "left ?" if seconds is None else f"left {human_seconds(round(seconds))}"


def times(state: RunState, now: float, elapsed: float | None = None) -> str:
    """`1m 05s gone, left 3m 20s`."""
    return f"{human_seconds(round(now - state.started))} gone, {left(state, now, elapsed)}"


def numbers(state: RunState, *, virtual: bool = False, last: bool = True) -> Iterator[str]:
    """`loss 1.2034  accuracy 0.8125  virtual 3m 20s  120 samples/s`, each as soon as it is known.

    Args:
      state: How far the run is.
      virtual: Whether its clock is not the wall's, and worth a word.
      last: Whether the metrics of an earlier round are told where the last one was not evaluated, with its number.
    """
    if state.last_row is not None and state.last_row["loss"] is not None:
        yield f"loss {state.last_row['loss']:.4f}"
    now = state.validated == state.rounds_done
    for name, value in state.validation.items() if now or last else ():
        yield f"{'validation loss' if name == 'loss' else name} {value:.4g}"
    if state.validation and last and not now:
        yield f"(after round {state.validated})"
    if virtual:
        yield f"virtual {human_seconds(state.virtual_seconds())}"
    if state.samples_per_second is not None:
        yield f"{state.samples_per_second:.4g} samples/s"


def _device_lines(state: RunState) -> Iterator[Text]:
    width = max(map(len, (*state.devices, SERVER)))
    for name in (*state.devices, SERVER):
        event = state.last_event[name]
        label, style = IDLE if event is None else STATES.get(event.what, (event.what, ""))
        line = Text(f"  {name:<{width}}  ").append(f"{label:<12}", style)
        if name == SERVER:
            yield line.append(event.peer if event is not None and event.peer else "", "dim")
        else:
            yield line.append(f"step {state.step_of(name):>{len(str(state.local_steps))}}/{state.local_steps}")


def _fleet_line(state: RunState) -> Text:
    latest = [state.last_event[device] for device in state.devices]
    counts = Counter(IDLE[0] if event is None else STATES.get(event.what, (event.what,))[0] for event in latest)
    doing = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    steps = sorted(map(state.step_of, state.devices))
    return Text(
        f"  {len(steps)} devices: {doing}; step {steps[0]} to {steps[-1]} of {state.local_steps}",
        no_wrap=True,
    )
