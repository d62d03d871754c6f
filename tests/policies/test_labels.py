"""Where the labels are."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import cut_at, cut_by_memory
from cutlayer.policies.labels import heads_for, labels_on_devices, labels_stay
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned


@pytest.mark.parametrize("tail", range(4))
def test_devices_hold_the_head_and_a_tail(tail: int) -> None:
    for device in planned(everyone(), labels_on_devices(tail=tail), cut_at(1)).devices:
        assert (device.cut, device.top, device.head) == (1, 3 - tail, True)
        assert device.alone == (tail >= 2)
        assert [block for block in range(3) if device.holds(block)] == sorted({0, *range(3 - tail, 3)})
        assert device.holds(None)
        assert device.below.top is None
        assert not device.below.holds(None)


def test_who_holds_every_block_trains_alone() -> None:
    devices = planned(everyone(), labels_on_devices(), cut_by_memory()).devices
    assert [(device.cut, device.alone) for device in devices] == [(1, False), (2, False), (3, True)]


def test_the_option() -> None:
    assert (labels_stay("server"), labels_stay("device")) == (False, True)
    assert heads_for("server") == ()
    assert len(heads_for("device")) == 1
    with pytest.raises(ConfigError, match=r"method\.labels: expected server or device, got 'phone'\. "):
        heads_for("phone")


def test_a_tail_that_the_model_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"method\.tail: expected 0 to 3, the model's blocks, got 4\. "):
        planned(everyone(), labels_on_devices(tail=4))
