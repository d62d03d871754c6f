"""Late gradients: those of the values that a step ran with, applied in the order of the steps."""

from __future__ import annotations

import pytest
import torch

from cutlayer.model.optimizers import OptimizerSettings, sgd
from cutlayer.model.trainable import Trainable
from cutlayer.model.versions import Versions

STEPS, RATE = 6, 0.1


def loss_of(values: dict[str, torch.Tensor], step: int) -> torch.Tensor:
    """A curve that is another one in every step, so that a step at the wrong point shows."""
    return ((values["w"] - step) ** 2).sum() * (1 + step)


def by_hand(delay: int) -> list[torch.Tensor]:
    """w(t+1) = w(t) - eta g(w(max(0, t-d)))."""
    points = [torch.tensor([1.0, -2.0])]
    for step in range(STEPS):
        point = points[max(0, step - delay)]
        points.append(points[-1] - RATE * 2 * (1 + step) * (point - step))
    return points


@pytest.mark.parametrize("delay", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("eager", [False, True])
def test_gradients_are_of_the_values_so_many_steps_ago(delay: int, eager: bool) -> None:
    """Whether a step runs as soon as it may or just before its own gradients are due."""
    trainable = Trainable({"w": torch.tensor([1.0, -2.0])}, sgd())
    versions, graphs = Versions(trainable, delay), dict[int, torch.Tensor]()

    def begin(step: int) -> None:
        if step < STEPS and step not in graphs:
            graphs[step] = loss_of(dict(versions.of(step)), step)

    for step in range(STEPS):
        for ahead in range(step, step + delay + 1) if eager else (step,):
            begin(ahead)
        graphs.pop(step).backward()
        if not eager:
            begin(step + delay)
        versions.step(step, RATE)
        torch.testing.assert_close(trainable.values()["w"], by_hand(delay)[step + 1])


def test_without_a_delay_nothing_is_copied() -> None:
    trainable = Trainable({"w": torch.zeros(2)}, OptimizerSettings())
    versions = Versions(trainable)
    assert versions.of(0) is trainable.parameters
    assert versions.of(7) is trainable.parameters


def test_no_more_values_are_kept_than_steps_may_use() -> None:
    trainable = Trainable({"w": torch.zeros(2)}, sgd())
    versions = Versions(trainable, 2)
    for step in range(5):
        loss_of(dict(versions.of(step)), step).backward()
        versions.step(step, RATE)
    assert sorted(versions._values) == [3, 4, 5]
    assert versions._leaves == {}


def test_two_uses_in_one_step_gather_in_one_gradient() -> None:
    """As below and above the server's blocks."""
    trainable = Trainable({"a": torch.ones(1), "b": torch.ones(1)}, sgd())
    versions = Versions(trainable, 1)
    (versions.of(1)["a"] * 7).sum().backward()  # of a later step, before the first is done
    versions.of(0)["a"].sum().backward()
    (versions.of(0)["b"] * 2).sum().backward()
    versions.step(0, 1.0)
    assert [float(value) for value in trainable.values().values()] == [0.0, -1.0]
