"""Work, transfers, waiting and bytes of each machine over a run.

Times and bytes come from the events, samples and steps from the records. A machine's window is the time of
the rounds it took part in, a round lasting from its first event to its last, on whatever machine. Then

    busy      the union of its forward, backward, step and aggregate events
    network   the union of its uploads and downloads
    waiting   the part of the window that is in neither

so busy + network + waiting is the window for a machine whose work never overlaps its own transfers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cutlayer.report.activities import COMPUTE, NETWORK, SERVER
from cutlayer.report.human import human_bytes, human_seconds
from cutlayer.report.intervals import Interval, length, uncovered, union
from cutlayer.report.listing import Listing
from cutlayer.types import Event, StepRecord

MOST_ROWS = 40  # of devices, in a terminal


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """Totals of one machine over the run. The server's samples, steps and bytes are sums over the devices."""

    device: str
    profile: str
    cut: int | None  # None for the server
    samples: int
    steps: int
    busy_seconds: float
    waiting_seconds: float
    network_seconds: float
    bytes_up: int  # device to server
    bytes_down: int  # server to device
    late: int = 0  # rounds that it had not finished when they were closed
    judged: Mapping[str, float] = field(default_factory=dict)  # what it last said of rows that it holds out


def device_ledger(
    events: Iterable[Event],
    records: Iterable[StepRecord],
    *,
    profiles: Mapping[str, str],
    cuts: Mapping[str, int],
    judged: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> list[DeviceRow]:
    """One row per device in the order of `profiles`, and the server's last.

    Args:
      events: of the whole run, in any order; rounds may overlap.
      records: what the devices measured, one per device and round.
      profiles: profile name by device name; may name the server too.
      cuts: the cut of each device, in the last round where it moves. A device that never joined may lack one.
      judged: by device, what it last said of rows that it holds out.
    """
    log = _Log(events)
    samples, steps, late = Counter[str](), Counter[str](), Counter[str]()
    for record in records:
        samples[record.device] += record.samples
        steps[record.device] += record.steps
        late[record.device] += record.late
    devices = [
        replace(
            log.row(name, profile, cuts.get(name), samples[name], steps[name], late[name]), judged=judged.get(name, {})
        )
        for name, profile in profiles.items()
        if name != SERVER
    ]
    return [*devices, log.server_row(profiles.get(SERVER, ""), devices)]


class _Log:
    """Events sorted into what the rows need."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._busy: dict[str, list[Interval]] = {}
        self._network: dict[str, list[Interval]] = {}
        self._bytes: dict[tuple[str, str], int] = {}
        self._rounds_of: dict[str, set[int]] = {}
        self._round_span: dict[int, Interval] = {}
        for event in events:
            self._add(event)

    def _add(self, event: Event) -> None:
        span = (event.start_seconds, event.end_seconds)
        first, last = self._round_span.get(event.round, span)
        self._round_span[event.round] = (min(first, span[0]), max(last, span[1]))
        self._rounds_of.setdefault(event.who, set()).add(event.round)
        if event.what in COMPUTE:
            self._busy.setdefault(event.who, []).append(span)
        elif event.what in NETWORK:
            self._network.setdefault(event.who, []).append(span)
            key = (event.who, event.what)
            self._bytes[key] = self._bytes.get(key, 0) + event.num_bytes

    def seconds(self, name: str) -> tuple[float, float, float]:
        """Busy, waiting and network seconds of one machine."""
        busy, network = union(self._busy.get(name, [])), union(self._network.get(name, []))
        window = union(self._round_span[round] for round in self._rounds_of.get(name, ()))
        return length(busy), uncovered(window, union([*busy, *network])), length(network)

    def row(self, name: str, profile: str, cut: int | None, samples: int, steps: int, late: int) -> DeviceRow:
        up, down = self._bytes.get((name, "upload"), 0), self._bytes.get((name, "download"), 0)
        return DeviceRow(name, profile, cut, samples, steps, *self.seconds(name), up, down, late)

    def server_row(self, profile: str, devices: list[DeviceRow]) -> DeviceRow:
        return DeviceRow(
            SERVER,
            profile,
            None,
            sum(row.samples for row in devices),
            sum(row.steps for row in devices),
            *self.seconds(SERVER),
            sum(row.bytes_up for row in devices),
            sum(row.bytes_down for row in devices),
            sum(row.late for row in devices),
        )


def device_table(rows: Sequence[DeviceRow], blocks: int | None = None) -> Listing:
    """The ledger for a terminal, the server last with the sums; names are whole, and the profile gives way first.

    Of a large fleet it shows the devices that were busy longest, and how many others there are. Where somebody was late
    it says in how many rounds; where devices judged, what each has come to on rows that it holds out.

    Args:
      rows: The ledger.
      blocks: Of the model, of which a device holds so many; None where nobody knows.
    """
    with_late, metric = any(row.late for row in rows), _metric(rows)
    own = [metric] if metric else []
    most = ("cut", *["late"] * with_late, *own, "busy", "waiting", "up", "down", "network", "samples", "steps")
    table = Listing("device", most=most)
    table.add_column("profile", style="dim")
    for name in ("cut", "samples", "steps", "busy", "waiting", "network", "up", "down", *["late"] * with_late, *own):
        table.add_column(name, justify="right")
    *devices, server = rows
    busiest = {row.device for row in sorted(devices, key=lambda row: row.busy_seconds, reverse=True)[:MOST_ROWS]}
    for row in devices:
        if row.device in busiest:
            said = [f"{row.judged[name]:.3g}" if name in row.judged else "-" for name in own]
            table.add_row(*_cells(row, blocks), *[str(row.late)] * with_late, *said)
    if len(devices) > MOST_ROWS:
        table.add_row(f"and {len(devices) - MOST_ROWS:,} more", style="dim")
    table.add_section()
    table.add_row(*_cells(server, blocks), *[str(server.late)] * with_late, style="bold")
    return table


def _metric(rows: Sequence[DeviceRow]) -> str | None:
    """The metric that the table shows of those that devices judged by: accuracy, else loss, else None."""
    said = {name for row in rows for name in row.judged}
    return next((name for name in ("accuracy", "loss") if name in said), None)


def _cells(row: DeviceRow, blocks: int | None) -> tuple[str, ...]:
    return (
        row.device,
        row.profile,
        "-" if row.cut is None else str(row.cut) if blocks is None else f"{row.cut} of {blocks}",
        f"{row.samples:,}",
        f"{row.steps:,}",
        human_seconds(row.busy_seconds),
        human_seconds(row.waiting_seconds),
        human_seconds(row.network_seconds) if row.network_seconds else "-",
        human_bytes(row.bytes_up),
        human_bytes(row.bytes_down),
    )
