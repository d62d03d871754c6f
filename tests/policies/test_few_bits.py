"""Few bits: which codec an update has, and that after one plain step it is the gradient that was applied."""

from __future__ import annotations

import pytest
import torch

from cutlayer.errors import ConfigError
from cutlayer.model.optimizers import quantised, sgd
from cutlayer.model.trainable import Trainable
from cutlayer.policies.few_bits import FewBits, rounding_to
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned
from cutlayer.wire.codecs import NONE, Int8, StochasticSteps


def test_updates_are_rounded_and_the_run_files_codec_stays() -> None:
    clause = FewBits(4, seed=1)
    codec = clause.codec("update", NONE, "0/phone///a")
    assert codec == StochasticSteps(4, "1/0/phone///a")
    assert clause.codec("update", Int8(), "") == Int8()
    assert all(clause.codec(role, NONE, "") is NONE for role in ("activations", "gradients", "broadcast"))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_after_one_plain_step_the_gradient_that_was_applied_is_what_is_sent(bits: int) -> None:
    """In the same whole steps, but for fp32's rounding of the difference: the sum of draws is not drawn anew."""
    gradient = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    trainable = Trainable({"a": torch.zeros(30, 7)}, quantised(sgd(), bits=bits, seed=5))
    trainable.parameters["a"].grad = gradient
    trainable.step(0.5)
    change = trainable.values()["a"]
    codec = StochasticSteps(bits, "anything")
    arrived = codec.unpack(codec.pack(change), change.shape, change.dtype)
    torch.testing.assert_close(arrived, change, rtol=1e-5, atol=1e-7)
    assert len(change.unique()) <= 2**bits - 1


def test_nothing_is_planned_of_none_and_bits_have_a_range() -> None:
    assert planned(everyone(), rounding_to(None, seed=0)).devices[0].clauses == ()
    for bits in (1, 17):
        with pytest.raises(ConfigError, match=r"method.bits: expected 2 to 16, or null for none"):
            rounding_to(bits, seed=0)
