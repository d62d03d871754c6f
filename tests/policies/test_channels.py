"""Channels at the cut: what is dropped when, by whose seed."""

from __future__ import annotations

import pytest
import torch

from cutlayer.errors import ConfigError
from cutlayer.policies.channels import DropChannels, dropping_channels
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned
from cutlayer.wire.codecs import NONE, Int8, SomeNumbers


def test_activations_are_scaled_when_they_leave_and_gradients_when_they_arrive() -> None:
    clause = DropChannels(0.25, seed=3)
    up, down = (clause.codec(role, NONE, "0/phone/1/0/") for role in ("activations", "gradients"))
    assert isinstance(up, SomeNumbers)
    assert isinstance(down, SomeNumbers)
    assert (up.on_arrival, down.on_arrival, up.key) == (False, True, down.key)
    assert (up.fraction, up.codec) == (0.75, NONE)
    assert all(clause.codec(role, NONE, "") is NONE for role in ("broadcast", "update"))


def test_other_channels_are_dropped_in_each_message() -> None:
    clause, h_BD = DropChannels(0.5, seed=3), torch.ones(1, 64)
    left = {
        tuple(codec.unpack(codec.pack(h_BD), h_BD.shape, h_BD.dtype).nonzero()[:, 1].tolist())
        for codec in (
            clause.codec("activations", NONE, f"{round}/phone/{step}/0/") for round in (0, 1) for step in (0, 1)
        )
    }
    assert len(left) == 4


def test_what_the_run_file_asks_for_packs_what_is_left() -> None:
    codec = DropChannels(0.5, seed=0).codec("activations", Int8(), "")
    assert codec.pack(torch.randn(2, 3, 16)).shape == (2, 3, 8 + 4)


def test_the_gradient_of_what_was_sent_is_that_of_dropout() -> None:
    """Through what arrives, by autograd: the derivative of a loss of the thinned activations."""
    clause, at = DropChannels(0.5, seed=3), "2/phone/0/0/"
    h_BD = torch.randn(4, 16, requires_grad=True)
    up, down = (clause.codec(role, NONE, at) for role in ("activations", "gradients"))
    arrived = up.unpack(up.pack(h_BD), h_BD.shape, h_BD.dtype)
    (arrived**3).sum().backward()
    leaf = arrived.detach().requires_grad_(True)
    (leaf**3).sum().backward()
    assert leaf.grad is not None
    sent_back = down.unpack(down.pack(leaf.grad), h_BD.shape, h_BD.dtype)
    assert h_BD.grad is not None
    torch.testing.assert_close(sent_back, h_BD.grad)
    assert int((sent_back == 0).all(0).sum()) == 8


def test_nothing_is_planned_of_none_and_no_share_is_all() -> None:
    assert planned(everyone(), dropping_channels(0.0, seed=0)).devices[0].clauses == ()
    for rate in (1.0, -0.1):
        with pytest.raises(ConfigError, match=r"method.dropout: expected from 0 to below 1"):
            dropping_channels(rate, seed=0)
