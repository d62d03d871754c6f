"""The machines of a fleet, and how a person writes them down.

A fleet file, in the units of data sheets (`builtin/memsfl-six.yaml` is a full one):

    source: where the numbers come from
    server: {tflops: 52.2, efficiency: 0.3, memory_gib: 16}
    defaults: {efficiency: 0.3, up_mbit: 100, down_mbit: 100, latency_ms: 5}      # for every device
    devices:
      - {name: jetson-nano, tflops: 0.472, memory_gib: 4, count: 10}              # jetson-nano-1 to -10
      - {name: phone, tflops: 1.689, memory_gib: 8, up_mbit: 20, max_blocks: 2}

With `server: {..., up_mbit: 1000, down_mbit: 1000}` all devices together send no faster than that.

Machines that run some blocks of the model for whoever asks (`petals`) are rows too:

    spans:
      - {name: gpu, tflops: 8, efficiency: 0.3, memory_gib: 8, up_mbit: 100, down_mbit: 100, latency_ms: 20, count: 4}
      - {name: pc, tflops: 2, efficiency: 0.3, memory_gib: 2, up_mbit: 20, down_mbit: 50, latency_ms: 30, blocks: "4:8",
         failures: 0.001, outage_s: 30, away_s: [[600, 900]]}

And places where devices are, which a connection of their own joins to the server (`hfl_prune`; for all other methods
what devices send goes through it too):

    sites:
      - {name: clinic, devices: [jetson-nano, phone], up_mbit: 20, down_mbit: 50, latency_ms: 15}
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Iterator, Set
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cutlayer.errors import ConfigError
from cutlayer.reading import guess, read_yaml, reading

WRITTEN_OUT = "written-out"
"""The name of a fleet that stands in a run file."""

MEASURED = "measured"
"""The word in place of a fleet in a run file: every machine of a real fleet measures itself, the server too."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of machines are also names of files and of bars in a chart."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Trace(_Frozen):
    """The stretches of time in which a device is there, again and again (`fleet/presence.py`).

    Attributes:
      here_seconds: from when to when, in order, from 0 to `every_seconds`.
      every_seconds: after so long the trace begins anew.
      random_start: whether a run begins somewhere in it, for each device by its name and the run's seed; else at 0 s.
    """

    here_seconds: tuple[tuple[float, float], ...] = Field(min_length=1)
    every_seconds: float = Field(gt=0)
    random_start: bool = False

    @model_validator(mode="after")
    def _stretches_follow_each_other(self) -> Trace:
        times = [0.0, *(time for stretch in self.here_seconds for time in stretch), self.every_seconds]
        ascending = all(before <= after for before, after in pairwise(times))
        if not ascending or any(start == end for start, end in self.here_seconds):
            raise ValueError("expected stretches [from, to] in order, from 0 to every_seconds, none of them empty")
        return self


Speed = Annotated[float, Field(ge=1, le=1e24)]
"""FLOP/s. Like those below as wide as anything that there is and far narrower than numbers are: what planners reckon
from it is finite, whoever said it."""
Rate = Annotated[float, Field(ge=1, le=1e15)]
"""Bits per second."""
Latency = Annotated[float, Field(ge=0, le=3600)]
"""Seconds."""
Room = Annotated[int, Field(gt=0, le=2**60)]
"""Bytes."""


class DeviceProfile(_Frozen):
    """A device, in base units.

    Attributes:
      name: its name in the fleet.
      flops_per_second: peak floating-point operations per second.
      efficiency: the part of the peak that training reaches, above 0 and up to 1.
      memory_bytes: what it offers for its part of the model.
      up_bits_per_second: rate towards the server.
      down_bits_per_second: rate from the server.
      latency_seconds: from the last byte sent to the last byte received.
      max_blocks: the most blocks that its owner lends; None for as many as fit.
      data_weight: its share of the training data, relative to the other devices'.
      modes: the parts of its speed among which it changes (`fleet/modes.py`); nobody plans with them.
      mode_rounds: rounds that it stays in a mode.
      availability: the probability with which it takes part in a round, or when it is there; 1 for always
        (`fleet/presence.py`).
      watts: its power while it computes at its highest clock (`fleet/allotment.py`).
      radio_watts: its power while it sends or is sent something.
    """

    name: str = Field(pattern=NAME_PATTERN)
    flops_per_second: Speed
    efficiency: float = Field(gt=0, le=1)
    memory_bytes: Room
    up_bits_per_second: Rate
    down_bits_per_second: Rate
    latency_seconds: Latency
    max_blocks: int | None = Field(default=None, ge=0, le=2**31)
    data_weight: float = Field(default=1.0, gt=0)
    modes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(1.0,), min_length=1)
    mode_rounds: int = Field(default=20, ge=1)
    availability: Annotated[float, Field(gt=0, le=1)] | Trace = 1.0
    watts: float = Field(default=10.0, ge=0)
    radio_watts: float = Field(default=1.0, ge=0)

    @property
    def effective_flops(self) -> float:
        """Floating-point operations per second that training reaches."""
        return self.flops_per_second * self.efficiency


class ServerProfile(_Frozen):
    """The server, in base units; the fields are those of `DeviceProfile`, but for its connection.

    Attributes:
      up_bits_per_second: rate at which all devices together can send to it; None where that is never too little.
      down_bits_per_second: rate at which it can send to all devices together; None likewise.
    """

    name: str = Field(default="server", pattern=NAME_PATTERN)
    flops_per_second: Speed
    efficiency: float = Field(gt=0, le=1)
    memory_bytes: Room
    up_bits_per_second: Rate | None = None
    down_bits_per_second: Rate | None = None

    @property
    def effective_flops(self) -> float:
        """Floating-point operations per second that training reaches."""
        return self.flops_per_second * self.efficiency


class SpanProfile(_Frozen):
    """A machine that runs some blocks of the model for whoever asks, and keeps nothing; in base units.

    Attributes:
      name: its name in the fleet.
      flops_per_second: peak floating-point operations per second.
      efficiency: the part of the peak that training reaches, above 0 and up to 1.
      memory_bytes: what it offers for blocks.
      up_bits_per_second: rate at which it sends.
      down_bits_per_second: rate at which it is sent to.
      latency_seconds: of its connection; between two machines those of both add up.
      blocks: those that it holds, [first, end); None where it holds as many as fit, wherever they are needed most.
      failures: probability that it fails while it is at a request, for a simulation.
      outage_seconds: how long it is gone then, at most to the end of the round.
      away: seconds of the run's clock, from and to, in which it is gone, for a simulation.
      here: whether it is there at this moment.
      address: where it listens on a real fleet, HOST:PORT; empty where it is only simulated.
    """

    name: str = Field(pattern=NAME_PATTERN)
    flops_per_second: Speed
    efficiency: float = Field(gt=0, le=1)
    memory_bytes: Room
    up_bits_per_second: Rate
    down_bits_per_second: Rate
    latency_seconds: Latency
    blocks: tuple[int, int] | None = None
    failures: float = Field(default=0.0, ge=0, lt=1)
    outage_seconds: float = Field(default=0.0, ge=0)
    away: tuple[tuple[float, float], ...] = ()
    here: bool = True
    address: str = ""

    @property
    def effective_flops(self) -> float:
        """Floating-point operations per second that training reaches."""
        return self.flops_per_second * self.efficiency

    @property
    def connection(self) -> ServerProfile:
        """The machine as one to which devices send, which share its connection."""
        return ServerProfile(
            name=self.name,
            flops_per_second=self.flops_per_second,
            efficiency=self.efficiency,
            memory_bytes=self.memory_bytes,
            up_bits_per_second=self.down_bits_per_second,
            down_bits_per_second=self.up_bits_per_second,
        )

    def is_away(self, seconds: float) -> bool:
        """Whether it is gone at this moment of the run's clock."""
        return any(begins <= seconds < ends for begins, ends in self.away)

    def link_to(self, device: DeviceProfile) -> DeviceProfile:
        """The device as this machine sees it: of each direction the slower rate, of latencies the sum."""
        return device.model_copy(
            update={
                "up_bits_per_second": min(device.up_bits_per_second, self.down_bits_per_second),
                "down_bits_per_second": min(device.down_bits_per_second, self.up_bits_per_second),
                "latency_seconds": device.latency_seconds + self.latency_seconds,
            }
        )


class SiteProfile(_Frozen):
    """A place where some devices are, and its connection to the server; in base units.

    Attributes:
      name: its name in the fleet.
      devices: the names of those that are there.
      up_bits_per_second: rate towards the server, of all of them together.
      down_bits_per_second: rate from the server.
      latency_seconds: of the connection; it adds to that of a device which talks with the server itself.
    """

    name: str = Field(pattern=NAME_PATTERN)
    devices: tuple[str, ...] = Field(min_length=1)
    up_bits_per_second: Rate
    down_bits_per_second: Rate
    latency_seconds: Latency


class Fleet(_Frozen):
    """A server, its devices, the sites that they are at, and the machines that run blocks for them; and where their
    numbers come from.
    """

    name: str
    source: str
    server: ServerProfile
    devices: tuple[DeviceProfile, ...]
    spans: tuple[SpanProfile, ...] = ()
    sites: tuple[SiteProfile, ...] = ()

    def site_of(self, device: str) -> SiteProfile | None:
        """The site of a device; None where the fleet has none for it."""
        return next((site for site in self.sites if device in site.devices), None)

    def spans_at(self, seconds: float) -> Fleet:
        """The fleet as it is at this moment of the run's clock: which machines that run blocks are there."""
        spans = tuple(span.model_copy(update={"here": not span.is_away(seconds)}) for span in self.spans)
        return self.model_copy(update={"spans": spans})

    def rates(self, device: DeviceProfile) -> tuple[float, float]:
        """Bits per second to the server and from it while no other device sends or is sent anything."""
        narrow = self.site_of(device.name) or self.server
        up, down = narrow.up_bits_per_second, narrow.down_bits_per_second
        return (
            min(device.up_bits_per_second, math.inf if up is None else up),
            min(device.down_bits_per_second, math.inf if down is None else down),
        )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Fleet:
        named: tuple[DeviceProfile | SpanProfile | SiteProfile, ...] = (*self.devices, *self.spans, *self.sites)
        names = Counter([self.server.name, *(one.name for one in named)])
        repeated = [name for name, times in names.items() if times > 1]
        if repeated:
            raise ValueError(
                f"expected each machine's name once, got {', '.join(repeated)} more than once. "
                "Rename them, or write one row with `count`."
            )
        return self

    @model_validator(mode="after")
    def _every_device_is_at_one_site(self) -> Fleet:
        places, there = Counter(name for site in self.sites for name in site.devices), {d.name for d in self.devices}
        wrong = sorted({*there} ^ {*places} | {name for name, times in places.items() if times > 1})
        if self.sites and wrong:
            raise ValueError(
                f"expected each device at one site, got {', '.join(wrong[:3])} at none or several, or no such device. "
                "Correct the sites' `devices`."
            )
        if self.sites and (self.server.up_bits_per_second or self.server.down_bits_per_second):
            raise ValueError(
                "expected no shared connection of the server where devices are at sites, whose connections they share, "
                "got one. Leave the server's up_mbit and down_mbit out."
            )
        return self


def load_fleet(fleet: str | Path | dict[str, Any]) -> Fleet:
    """The built-in fleet of that name, the fleet in that YAML file, or the fleet that a file's content describes.

    Raises:
      ConfigError: when there is none of that name, or what is there does not describe a fleet.
    """
    if isinstance(fleet, dict):
        return _fleet(fleet, WRITTEN_OUT, "fleet")
    if str(fleet) in _builtin():
        return _read(_builtin()[str(fleet)], str(fleet))
    path = _fleet_file(fleet)
    return _read(path, path.stem)


def write_out(fleet: str | dict[str, Any]) -> str | dict[str, Any]:
    """The same fleet without its file: the content of the file, which `load_fleet` takes; built-in names stay.

    Raises:
      ConfigError: when there is no such fleet.
    """
    if isinstance(fleet, str) and fleet != MEASURED and fleet not in _builtin():
        path = _fleet_file(fleet)
        _read(path, path.stem)  # says what is wrong with the file while there is a file to name
        return _content(fleet)
    return fleet


def first_devices(fleet: str | dict[str, Any], number: int) -> dict[str, Any]:
    """The content of a fleet file with the first devices of this fleet alone.

    Raises:
      ConfigError: There is no such fleet, or it has fewer devices.
    """
    whole = load_fleet(fleet)
    if number > len(whole.devices):
        raise ConfigError(
            f"--devices: expected at most the {len(whole.devices)} of fleet {whole.name}, got {number}. "
            "Name another fleet (--fleet), or lower the number."
        )
    content = fleet if isinstance(fleet, dict) else _content(fleet)
    rows: list[dict[str, Any]] = []
    for row in content["devices"]:
        count, left = row.get("count", 1), number - sum(one.get("count", 1) for one in rows)
        if count <= left:
            rows.append(row)
        else:  # numbered as in the whole fleet
            rest = {key: value for key, value in row.items() if key != "count"}
            rows += [{**rest, "name": f"{row['name']}-{i + 1}"} for i in range(left)]
        if count >= left:
            break
    return {**content, "devices": rows}


def list_fleets() -> list[Fleet]:
    """The built-in fleets, by name."""
    return [_read(file, name) for name, file in _builtin().items()]


# ------------------------------------------------------------------ the file

_MEGA, _GIBI, _TERA = 1e6, 2**30, 1e12
_MOST = 1e6  # whoever writes more than that many Mbit/s or TFLOP/s wrote bits or FLOPs
_LEAST_MBIT, _LEAST_TFLOPS = 1e-6, 1e-12  # a bit, or a FLOP, per second


class _Row(BaseModel):
    """The content of a file, or of one of its rows; an error about a field says its description."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


R = TypeVar("R", bound=_Row)


class _ServerRow(_Row):
    name: str = Field("server", pattern=NAME_PATTERN, description="name, of letters, digits, . _ -")
    tflops: float = Field(ge=_LEAST_TFLOPS, le=_MOST, description="peak TFLOP/s, such as 52.2")
    efficiency: float = Field(gt=0, le=1, description="part of the peak that training reaches, such as 0.3")
    memory_gib: float = Field(gt=0, le=_MOST, description="memory in GiB, such as 16")
    up_mbit: float | None = Field(
        None, ge=_LEAST_MBIT, le=_MOST, description="rate of all devices together to the server in Mbit/s, such as 1000"
    )
    down_mbit: float | None = Field(
        None, ge=_LEAST_MBIT, le=_MOST, description="rate of the server to all devices together in Mbit/s, such as 1000"
    )

    def profile(self) -> ServerProfile:
        return ServerProfile(
            name=self.name,
            flops_per_second=self.tflops * _TERA,
            efficiency=self.efficiency,
            memory_bytes=math.ceil(self.memory_gib * _GIBI),
            up_bits_per_second=None if self.up_mbit is None else self.up_mbit * _MEGA,
            down_bits_per_second=None if self.down_mbit is None else self.down_mbit * _MEGA,
        )


class _DeviceRow(_Row):
    name: str = Field(pattern=NAME_PATTERN, description="name, of letters, digits, . _ -")
    count: int = Field(1, ge=1, le=_MOST, description="number of such devices, such as 10")
    tflops: float = Field(ge=_LEAST_TFLOPS, le=_MOST, description="peak TFLOP/s, such as 0.472")
    efficiency: float = Field(gt=0, le=1, description="part of the peak that training reaches, such as 0.3")
    memory_gib: float = Field(gt=0, le=_MOST, description="memory in GiB, such as 4")
    up_mbit: float = Field(ge=_LEAST_MBIT, le=_MOST, description="rate to the server in Mbit/s, such as 100")
    down_mbit: float = Field(ge=_LEAST_MBIT, le=_MOST, description="rate from the server in Mbit/s, such as 100")
    latency_ms: float = Field(ge=0, le=_MOST, description="one-way latency in ms, such as 5")
    max_blocks: int | None = Field(None, ge=0, le=_MOST, description="most blocks that it lends, such as 3")
    data_weight: float = Field(1.0, gt=0, le=_MOST, description="share of the data beside others', such as 1")
    modes: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1.0], min_length=1, description="parts of its speed among which it changes, such as [1.0, 0.6, 0.3]"
    )
    mode_rounds: int = Field(20, ge=1, le=_MOST, description="rounds that it stays in a mode, such as 20")
    availability: Literal["always"] | Annotated[float, Field(gt=0, le=1)] | Trace = Field(
        "always",
        description="availability: always, the probability of a round such as 0.8, or "
        "{here_seconds: [[0, 600]], every_seconds: 900}",
    )
    watts: float = Field(10.0, ge=0, le=_MOST, description="power while it computes in W, such as 10")
    radio_watts: float = Field(1.0, ge=0, le=_MOST, description="power while it sends or is sent in W, such as 1")

    def profiles(self) -> list[DeviceProfile]:
        return [
            DeviceProfile(
                **machine,
                max_blocks=self.max_blocks,
                data_weight=self.data_weight,
                modes=tuple(self.modes),
                mode_rounds=self.mode_rounds,
                availability=1.0 if self.availability == "always" else self.availability,
                watts=self.watts,
                radio_watts=self.radio_watts,
            )
            for machine in _machines(self)
        ]


class _SpanRow(_Row):
    name: str = Field(pattern=NAME_PATTERN, description="name, of letters, digits, . _ -")
    count: int = Field(1, ge=1, le=_MOST, description="number of such machines, such as 4")
    tflops: float = Field(ge=_LEAST_TFLOPS, le=_MOST, description="peak TFLOP/s, such as 8")
    efficiency: float = Field(gt=0, le=1, description="part of the peak that training reaches, such as 0.3")
    memory_gib: float = Field(gt=0, le=_MOST, description="memory for blocks in GiB, such as 8")
    up_mbit: float = Field(ge=_LEAST_MBIT, le=_MOST, description="rate at which it sends in Mbit/s, such as 100")
    down_mbit: float = Field(ge=_LEAST_MBIT, le=_MOST, description="rate at which it is sent to in Mbit/s, such as 100")
    latency_ms: float = Field(ge=0, le=_MOST, description="one-way latency of its connection in ms, such as 20")
    blocks: str | None = Field(None, pattern=r"^\d+:\d+$", description='blocks that it holds, such as "4:8"')
    failures: float = Field(0.0, ge=0, lt=1, description="probability that it fails at a request, such as 0.001")
    outage_s: float = Field(0.0, ge=0, le=_MOST, description="seconds that it is gone after a failure, such as 30")
    away_s: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(
        [], description="times in which it is gone, in seconds of the run, such as [[600, 900]]"
    )
    address: str = Field("", description="address at which it listens, such as gpu-1.example.org:7071")

    def profiles(self, where: str) -> list[SpanProfile]:
        return [
            SpanProfile(
                **machine,
                blocks=None if self.blocks is None else parse_blocks(self.blocks, f"{where}, blocks"),
                failures=self.failures,
                outage_seconds=self.outage_s,
                away=tuple((begins, ends) for begins, ends in self.away_s),
                address=self.address,
            )
            for machine in _machines(self)
        ]


def _machines(row: _DeviceRow | _SpanRow) -> Iterator[dict[str, Any]]:
    """Yields of each machine of a row its name, and what both kinds of profiles say of a machine and its link."""
    for name in [row.name] if row.count == 1 else [f"{row.name}-{i + 1}" for i in range(row.count)]:
        yield {
            "name": name,
            "flops_per_second": row.tflops * _TERA,
            "efficiency": row.efficiency,
            "memory_bytes": math.ceil(row.memory_gib * _GIBI),
            "up_bits_per_second": row.up_mbit * _MEGA,
            "down_bits_per_second": row.down_mbit * _MEGA,
            "latency_seconds": row.latency_ms / 1000,
        }


class _SiteRow(_Row):
    name: str = Field(pattern=NAME_PATTERN, description="name, of letters, digits, . _ -")
    devices: list[str] = Field(min_length=1, description="devices that are there, as a list of names of rows")
    up_mbit: float = Field(ge=_LEAST_MBIT, le=_MOST, description="rate to the server in Mbit/s, such as 20")
    down_mbit: float = Field(ge=_LEAST_MBIT, le=_MOST, description="rate from the server in Mbit/s, such as 50")
    latency_ms: float = Field(ge=0, le=_MOST, description="one-way latency to the server in ms, such as 15")

    def profile(self, rows: dict[str, list[str]]) -> SiteProfile:
        return SiteProfile(
            name=self.name,
            devices=tuple(name for device in self.devices for name in rows.get(device, [device])),
            up_bits_per_second=self.up_mbit * _MEGA,
            down_bits_per_second=self.down_mbit * _MEGA,
            latency_seconds=self.latency_ms / 1000,
        )


def parse_blocks(words: str, where: str) -> tuple[int, int]:
    """Blocks [first, end) as a person writes them, `first:end`.

    Raises:
      ConfigError: They are none.

    Example:
      >>> parse_blocks("4:8", "--span")
      (4, 8)
    """
    first, _, end = words.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ConfigError(f"{where}: expected FIRST:END, first below end, got {words!r}. Write for example 4:8.")
    return int(first), int(end)


class _File(_Row):
    source: str = Field("not stated", description="place where the numbers come from, as text")
    server: Any = Field(description="server, as {tflops: 52.2, efficiency: 0.3, memory_gib: 16}")
    defaults: dict[Any, Any] = Field({}, description="keys that all devices share, such as {latency_ms: 5}")
    devices: list[dict[Any, Any]] = Field(min_length=1, description="devices, as a list of - {name: ...}")
    spans: list[dict[Any, Any]] = Field([], description="machines that run blocks, as a list of - {name: ...}")
    sites: list[dict[Any, Any]] = Field([], description="places where devices are, as a list of - {name: ...}")


def _builtin() -> dict[str, Traversable]:
    folder = resources.files("cutlayer.fleet").joinpath("builtin")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def _fleet_file(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if str(name_or_path) == MEASURED:
        raise ConfigError(
            f"fleet: expected machines that somebody has described, got {MEASURED}: a real fleet measures itself when "
            "it is there. Name one of `cutlayer fleets`, or a fleet file (--fleet)."
        )
    with reading("fleet", f"one of {', '.join(_builtin())}, or a .yaml file"):
        there = path.is_file()
    if path.suffix not in (".yaml", ".yml") and not there:
        raise ConfigError(
            f"fleet: expected one of {', '.join(_builtin())}, or a .yaml file, got {str(name_or_path)!r}. "
            f"{guess(name_or_path, _builtin()) or 'Name one of these, or write the path of a fleet file.'}"
        )
    return path


def _content(name_or_path: str) -> dict[str, Any]:
    path = _builtin().get(name_or_path) or _fleet_file(name_or_path)
    content: dict[str, Any] = read_yaml(path, f"fleet file {path}")
    return content


def _read(path: Path | Traversable, name: str) -> Fleet:
    where = f"fleet file {path}"
    return _fleet(read_yaml(path, where), name, where)


def _fleet(content: object, name: str, where: str) -> Fleet:
    """The fleet that the content of a fleet file describes; `where` begins its errors."""
    file = _parse(_File, content, where)
    _expect_keys(file.defaults, _DeviceRow.model_fields.keys() - {"name", "count"}, f"{where}, defaults")
    server = _parse(_ServerRow, file.server, f"{where}, server").profile()
    devices: list[DeviceProfile] = []
    rows: dict[str, list[str]] = {}
    for number, row in enumerate(file.devices, start=1):
        label = f"{where}, device {reprlib.repr(row.get('name', number))}"
        parsed = _parse(_DeviceRow, file.defaults | row, label)
        devices += parsed.profiles()
        rows[parsed.name] = [profile.name for profile in parsed.profiles()]
    spans: list[SpanProfile] = []
    for number, row in enumerate(file.spans, start=1):
        label = f"{where}, span {reprlib.repr(row.get('name', number))}"
        spans += _parse(_SpanRow, row, label).profiles(label)
    sites = [
        _parse(_SiteRow, row, f"{where}, site {reprlib.repr(row.get('name', number))}").profile(rows)
        for number, row in enumerate(file.sites, start=1)
    ]
    try:
        return Fleet(
            name=name,
            source=file.source,
            server=server,
            devices=tuple(devices),
            spans=tuple(spans),
            sites=tuple(sites),
        )
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {message}") from None


def _parse(row: type[R], data: Any, where: str) -> R:
    """`data` as a `row`; the first thing that is wrong with it becomes one line that says what to change."""
    _expect_keys(data, row.model_fields.keys(), where)
    try:
        return row.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key, why = str(first["loc"][0]), first["msg"]
        got, fix = reprlib.repr(first["input"]), "Correct it"
        if first["type"] == "missing":
            got, fix = "nothing", "Add it"
        expected = row.model_fields[key].description
        raise ConfigError(f"{where}, {key}: expected the {expected}, got {got} ({why}). {fix}.") from None


def _expect_keys(data: Any, known: Set[str], where: str) -> None:
    keys = ", ".join(sorted(known))
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys among {keys}, got {reprlib.repr(data)}. Write them as `key: value`.")
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: expected keys among {keys}, got {key!r}. Remove it or correct its spelling.")
