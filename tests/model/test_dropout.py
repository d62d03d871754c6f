"""Dropout by a named seed: reproducible, and nobody else's random numbers change."""

from __future__ import annotations

import pytest
import torch

from cutlayer.model.dropout import seeded_dropout, still


def draw(*key: object, active: bool = True) -> torch.Tensor:
    with seeded_dropout(active, *key):
        return torch.nn.functional.dropout(torch.ones(1000), 0.5)


def test_the_same_key_draws_the_same() -> None:
    torch.manual_seed(1)
    one = draw(0, "device", "phone", 2, 3)
    torch.manual_seed(2)
    assert torch.equal(one, draw(0, "device", "phone", 2, 3))


@pytest.mark.parametrize(
    "key",
    [
        (1, "device", "phone", 2, 3),
        (0, "server", "phone", 2, 3),
        (0, "device", "tablet", 2, 3),
        (0, "device", "phone", 3, 2),
        (0, "device", "phone", 2, 4),
    ],
)
def test_any_other_key_draws_something_else(key: tuple[object, ...]) -> None:
    assert not torch.equal(draw(*key), draw(0, "device", "phone", 2, 3))


def test_the_global_generator_is_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw("key")
    assert torch.equal(torch.rand(3), expected)


def test_it_is_as_it_was_also_after_a_failure() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(TypeError), seeded_dropout(True, "key"):
        torch.dropout(torch.rand(3), "no number", True)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_where_nothing_drops_out_nothing_is_done() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded_dropout(False, "key"):
        assert torch.equal(torch.rand(3), expected)


def test_a_still_model_drops_nothing_and_has_no_graph() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))
    x = torch.ones(2, 3)
    with still(model):
        assert torch.equal(model(x), model[0](x))
        assert not model(x).requires_grad
    assert model(x).requires_grad
    assert model[1].training
    with pytest.raises(RuntimeError), still(model):
        model(torch.ones(2, 4))
    assert model[1].training
