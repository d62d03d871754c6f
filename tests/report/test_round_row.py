from cutlayer.report.round_row import round_row
from cutlayer.types import StepRecord


def record(device: str, *, weight: int, loss: float) -> StepRecord:
    return StepRecord(3, device, 2, 8, weight, loss, 1.0, 0.5, 0.25, bytes_up=100, bytes_down=10, facts={"change": 0.5})


def test_the_loss_is_weighted_and_bytes_are_summed() -> None:
    row = round_row(
        [record("a", weight=30, loss=1.0), record("b", weight=10, loss=3.0)],
        round=3,
        virtual_seconds=12.0,
        wall_seconds=0.5,
        server_memory_bytes=2048,
        validation={"accuracy": 0.75},
    )
    devices = row.pop("devices")
    assert row == {
        "round": 3,
        "loss": 1.5,
        "samples": 16,
        "weight": 40,
        "late": 0,
        "bytes_up": 200,
        "bytes_down": 20,
        "virtual_seconds": 12.0,
        "server_memory_bytes": 2048,
        "wall_seconds": 0.5,
        "validation": {"accuracy": 0.75},
        "held_out": {},
    }
    assert list(devices) == ["a", "b"]
    assert devices["b"] == {
        "steps": 2,
        "samples": 8,
        "weight": 10,
        "loss": 3.0,
        "busy_seconds": 1.0,
        "network_seconds": 0.5,
        "waiting_seconds": 0.25,
        "bytes_up": 100,
        "bytes_down": 10,
        "backward_seconds": 0.0,
        "upload_seconds": 0.0,
        "cut": 0,
        "batch_size": 0,
        "ranks": (),
        "flops": 0.0,
        "memory_bytes": 0,
        "step_network_seconds": 0.0,
        "facts": {"change": 0.5},
        "dropped_messages": 0,
        "late": False,
    }


def test_a_round_in_which_nobody_trained_has_no_loss() -> None:
    row = round_row([], round=0, virtual_seconds=0.0, wall_seconds=0.0, server_memory_bytes=0, validation={})
    assert row["loss"] is None
    assert row["samples"] == 0


def test_the_order_of_the_devices_changes_no_bit() -> None:
    records = [record(str(index), weight=index + 1, loss=0.1 * index) for index in range(20)]
    times = {"round": 3, "virtual_seconds": 1.0, "wall_seconds": 1.0, "server_memory_bytes": 0}
    one = round_row(records, **times, validation={})  # type: ignore[arg-type]
    other = round_row(records[::-1], **times, validation={})  # type: ignore[arg-type]
    assert one == other
