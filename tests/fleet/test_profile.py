"""Fleet files: readable units in, base units out, and one line for everything that may be wrong."""

from collections import Counter
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile, list_fleets, load_fleet

DEVICE: dict[Any, object] = {
    "name": "phone",
    "tflops": 2,
    "efficiency": 0.25,
    "memory_gib": 1.5,
    "up_mbit": 10,
    "down_mbit": 50.5,
    "latency_ms": 20,
}
SERVER: dict[str, object] = {"tflops": 50, "efficiency": 0.5, "memory_gib": 16}


def write(folder: Path, *devices: object, **content: object) -> Path:
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump({"server": SERVER, "devices": list(devices)} | content))
    return path


def test_units_become_base_units(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, DEVICE | {"max_blocks": 3, "data_weight": 2}, source="measured"))
    assert fleet.devices == (
        DeviceProfile(
            name="phone",
            flops_per_second=2e12,
            efficiency=0.25,
            memory_bytes=3 * 2**29,
            up_bits_per_second=10e6,
            down_bits_per_second=50.5e6,
            latency_seconds=0.02,
            max_blocks=3,
            data_weight=2.0,
        ),
    )
    assert fleet.devices[0].effective_flops == 5e11
    assert fleet.server == ServerProfile(flops_per_second=5e13, efficiency=0.5, memory_bytes=2**34)
    assert fleet.server.effective_flops == 2.5e13
    assert (fleet.name, fleet.source, fleet.server.name) == ("lab", "measured", "server")


def test_the_servers_connection_may_be_shared(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, DEVICE, server=SERVER | {"up_mbit": 8, "down_mbit": 1000}))
    assert (fleet.server.up_bits_per_second, fleet.server.down_bits_per_second) == (8e6, 1e9)
    assert fleet.rates(fleet.devices[0]) == (8e6, 50.5e6), "alone, a device has the less of the two"
    fleet = load_fleet(write(tmp_path, DEVICE))
    assert (fleet.server.up_bits_per_second, fleet.server.down_bits_per_second) == (None, None)
    assert fleet.rates(fleet.devices[0]) == (10e6, 50.5e6)


def test_what_may_be_left_out(tmp_path: Path) -> None:
    fleet = load_fleet(str(write(tmp_path, DEVICE)))
    assert (fleet.devices[0].max_blocks, fleet.devices[0].data_weight) == (None, 1.0)
    assert fleet.source == "not stated"


def test_count_makes_numbered_devices(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, DEVICE | {"count": 3}, DEVICE | {"name": "pc", "count": 1}))
    assert [device.name for device in fleet.devices] == ["phone-1", "phone-2", "phone-3", "pc"]
    assert len({device.memory_bytes for device in fleet.devices}) == 1


def test_defaults_are_for_every_device_that_says_nothing_else(tmp_path: Path) -> None:
    slow = {"name": "slow", "tflops": 1, "latency_ms": 7}
    defaults = {key: DEVICE[key] for key in DEVICE if key not in ("name", "tflops")}
    fleet = load_fleet(write(tmp_path, {"name": "a", "tflops": 3}, slow, defaults=defaults))
    assert [device.latency_seconds for device in fleet.devices] == [0.02, 0.007]
    assert [device.flops_per_second for device in fleet.devices] == [3e12, 1e12]


def test_profiles_do_not_change_and_take_no_other_fields(tmp_path: Path) -> None:
    device = load_fleet(write(tmp_path, DEVICE)).devices[0]
    with pytest.raises(pydantic.ValidationError):
        device.efficiency = 1.0  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        DeviceProfile.model_validate(device.model_dump() | {"colour": "red"})


SPAN = {"name": "gpu", "tflops": 8, "efficiency": 0.3, "memory_gib": 2, "up_mbit": 10, "down_mbit": 20, "latency_ms": 7}


def test_machines_that_run_blocks(tmp_path: Path) -> None:
    more = {"blocks": "2:4", "failures": 0.25, "outage_s": 3, "away_s": [[1, 2.5]], "address": "gpu:7071", "count": 2}
    fleet = load_fleet(write(tmp_path, DEVICE, spans=[SPAN | more, SPAN]))
    first, second, plain = fleet.spans
    assert (first.name, second.name, plain.name) == ("gpu-1", "gpu-2", "gpu")
    assert (first.blocks, first.failures, first.outage_seconds, first.address) == ((2, 4), 0.25, 3.0, "gpu:7071")
    assert (plain.blocks, plain.failures, plain.away, plain.here, plain.address) == (None, 0.0, (), True, "")
    assert [first.is_away(at) for at in (0.9, 1.0, 2.4, 2.5)] == [False, True, True, False]
    assert plain.effective_flops == 2.4e12
    seen = plain.link_to(fleet.devices[0])
    assert (seen.up_bits_per_second, seen.down_bits_per_second) == (10e6, 10e6), "the slower of both, each way"
    assert seen.latency_seconds == pytest.approx(0.027)
    connection = plain.connection
    assert (connection.up_bits_per_second, connection.down_bits_per_second) == (20e6, 10e6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blocks": "4"}, "blocks: expected"),
        ({"blocks": "4:4"}, "expected FIRST:END, first below end, got '4:4'"),
        ({"failures": 1.0}, "failures: expected the probability"),
        ({"away_s": [[1]]}, "away_s: expected the times"),
        ({"latency_ms": None}, "latency_ms: expected"),
        ({"colour": "red"}, "got 'colour'"),
        ({"name": "phone"}, "expected each machine's name once, got phone"),
    ],
)
def test_a_span_that_is_wrong(change: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        load_fleet(write(tmp_path, DEVICE, spans=[SPAN | change]))


# ------------------------------------------------------------------ what is built in


def test_every_built_in_fleet_loads_by_its_name_and_cites_its_source() -> None:
    fleets = list_fleets()
    assert "memsfl-six" in [fleet.name for fleet in fleets]
    assert [load_fleet(fleet.name) for fleet in fleets] == fleets
    assert all(fleet.source != "not stated" for fleet in fleets)


def test_memsfl_six_is_the_six_recalled_devices() -> None:
    fleet = load_fleet("memsfl-six")
    speeds = [device.flops_per_second / 1e12 for device in fleet.devices]
    assert speeds == pytest.approx([0.472, 1.33, 1.689, 2.147, 2.774, 3.533])
    assert [device.max_blocks for device in fleet.devices] == [1, 1, 2, 2, 3, 3]
    assert {device.up_bits_per_second for device in fleet.devices} == {100e6}
    assert {device.down_bits_per_second for device in fleet.devices} == {100e6}
    assert fleet.server.flops_per_second == pytest.approx(52.2e12)
    assert "recalled" in fleet.source
    assert "not confirmed" in fleet.source


def test_jetson_80_is_three_kinds_of_jetson_that_change_their_speed() -> None:
    fleet = load_fleet("jetson-80")
    kinds = Counter(
        (device.name.rpartition("-")[0], device.flops_per_second / 1e12, device.memory_bytes // 2**30)
        for device in fleet.devices
    )
    assert kinds == {("tx2", 1.33, 8): 30, ("xavier-nx", 1.69, 8): 40, ("agx-xavier", 2.82, 32): 10}
    for name, cores, clock in [("tx2-1", 256, 1.30e9), ("xavier-nx-1", 384, 1.10e9), ("agx-xavier-1", 512, 1.377e9)]:
        [device] = [device for device in fleet.devices if device.name == name]
        assert device.flops_per_second == pytest.approx(cores * 2 * 2 * clock, rel=0.01)
        assert device.mode_rounds == 20
        assert len(device.modes) == (4 if name == "tx2-1" else 8)
    assert "recalled" in fleet.source


def test_phones_1000_are_a_thousand_phones() -> None:
    fleet = load_fleet("phones-1000")
    assert len(fleet.devices) == 1000
    assert all(max(device.modes) == 1.0 and len(device.modes) > 1 for device in fleet.devices)
    assert "choice" in fleet.source


# ------------------------------------------------------------------ what is wrong


def error_of(name_or_path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_fleet(name_or_path)
    message = str(caught.value)
    assert "\n" not in message
    assert ": expected " in message
    assert ", got " in message
    assert message.endswith((".", "?"))
    return message


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in DEVICE.items() if name != key}


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (without("tflops"), "device 'phone', tflops: expected the peak TFLOP/s, such as 0.472, got nothing"),
        (without("name"), "device 1, name"),
        (DEVICE | {"tflop": 1}, "device 'phone': expected keys among availability, count, data_weight, down_mbit"),
        (DEVICE | {7: 1}, "got 7"),
        (DEVICE | {"tflops": 0}, "tflops"),
        (DEVICE | {"tflops": 472e9}, "tflops"),
        (DEVICE | {"tflops": "fast"}, "got 'fast'"),
        (DEVICE | {"efficiency": 1.01}, "efficiency"),
        (DEVICE | {"efficiency": 0}, "efficiency"),
        (DEVICE | {"memory_gib": -4}, "memory_gib: expected the memory in GiB, such as 4, got -4"),
        (DEVICE | {"up_mbit": -100}, "up_mbit: expected the rate to the server in Mbit/s, such as 100, got -100"),
        (DEVICE | {"down_mbit": 0}, "down_mbit"),
        (DEVICE | {"latency_ms": -1}, "latency_ms"),
        (DEVICE | {"latency_ms": float("nan")}, "latency_ms"),
        (DEVICE | {"up_mbit": float("inf")}, "up_mbit"),
        (DEVICE | {"count": 0}, "count"),
        (DEVICE | {"count": 1.5}, "count"),
        (DEVICE | {"count": True}, "count"),
        (DEVICE | {"max_blocks": -1}, "max_blocks"),
        (DEVICE | {"max_blocks": 10**30}, "max_blocks"),
        (DEVICE | {"tflops": 1e-320}, "tflops"),
        (DEVICE | {"up_mbit": 1e-300}, "up_mbit"),
        (DEVICE | {"data_weight": 0}, "data_weight"),
        (DEVICE | {"modes": []}, "modes: expected the parts of its speed among which it changes, such as [1.0, 0.6"),
        (DEVICE | {"modes": [1.0, 0]}, "modes"),
        (DEVICE | {"modes": [1.5]}, "modes"),
        (DEVICE | {"modes": 0.5}, "modes"),
        (DEVICE | {"mode_rounds": 0}, "mode_rounds: expected the rounds that it stays in a mode, such as 20, got 0"),
        (DEVICE | {"name": "a phone"}, "name"),
        (DEVICE | {"name": "a\nphone"}, "name"),
        (DEVICE | {"name": "../phone"}, "name"),
        (DEVICE | {"name": "server"}, "each machine's name once, got server"),
        ("phone", "devices"),
    ],
)
def test_a_device_that_is_wrong(tmp_path: Path, device: object, says: str) -> None:
    path = write(tmp_path, device)
    message = error_of(path)
    assert message.startswith(f"fleet file {path}")
    assert says in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"devices": []}, "devices: expected the devices"),
        ({"devices": None}, "devices: expected the devices"),
        ({"devices": [DEVICE, DEVICE]}, "got phone more than once"),
        ({"devices": [DEVICE | {"count": 2}, DEVICE | {"name": "phone-2"}]}, "got phone-2 more than once"),
        ({"defaults": {"latency": 1}}, "defaults: expected keys among availability, data_weight"),
        ({"defaults": {"name": "phone"}}, "defaults: expected keys among availability, data_weight"),
        ({"defaults": 3}, "defaults: expected the keys that all devices share"),
        ({"server": None}, "server: expected keys among down_mbit, efficiency, memory_gib, name, tflops, up_mbit, got"),
        ({"server": SERVER | {"tflops": -1}}, "server, tflops"),
        (
            {"server": SERVER | {"up_mbit": 0}},
            "server, up_mbit: expected the rate of all devices together to the server",
        ),
        ({"server": SERVER | {"down_mbit": 1e9}}, "server, down_mbit: expected the rate of the server to all devices"),
        ({"server": SERVER | {"latency_ms": 1}}, "got 'latency_ms'"),
        ({"source": 7}, "source"),
        ({"sources": "x"}, "expected keys among defaults, devices, server, sites, source, spans, got 'sources'"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, content: dict[str, object], says: str) -> None:
    assert says in error_of(write(tmp_path, *[DEVICE], **content))


@pytest.mark.parametrize("text", ["", "[]", "devices: [", "\x00", "a: b: c"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    assert str(path) in error_of(path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert str(path) in error_of(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in error_of(tmp_path / "lab.yaml")


def test_an_unknown_name_lists_the_known_ones() -> None:
    message = error_of("memsfl")
    assert "got 'memsfl'" in message
    assert all(fleet.name in message for fleet in list_fleets())


def test_a_fleet_made_in_code_is_checked_too() -> None:
    server = ServerProfile(flops_per_second=1, efficiency=1, memory_bytes=1)
    device = DeviceProfile(
        name="pi",
        flops_per_second=1,
        efficiency=1,
        memory_bytes=1,
        up_bits_per_second=1,
        down_bits_per_second=1,
        latency_seconds=0,
    )
    with pytest.raises(pydantic.ValidationError):
        Fleet(name="lab", source="here", server=server, devices=(device, device))
