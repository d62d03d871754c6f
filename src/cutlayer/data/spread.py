"""Spreading samples over devices: who has which, from perfectly even to one class each.

Every way gives each sample to exactly one device and leaves no device empty. With `weights`, devices get data in
proportion to them as far as the way allows.

Shapes: N samples, D devices, K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError, DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FORMS = "iid, dirichlet:ALPHA, one-class, column:NAME"


@dataclass(frozen=True, slots=True)
class How:
    """A way to spread, parsed: `alpha` is Dirichlet's, `column` is the name of the column to go by."""

    kind: Literal["iid", "dirichlet", "one-class", "column"]
    alpha: float = math.inf
    column: str | None = None


def parse(how: str) -> How:
    """Reads `iid`, `dirichlet:ALPHA`, `one-class` or `column:NAME`.

    Raises:
      ConfigError: it is none of these, or ALPHA is no number above 0.

    Example:
        >>> parse("dirichlet:0.5").alpha
        0.5
    """
    kind, colon, argument = how.partition(":")
    if kind == "column" and argument:
        return How("column", column=argument)
    if kind == "dirichlet":
        try:
            alpha = float(argument)
        except ValueError:
            alpha = math.nan
        if 0 < alpha < math.inf:
            return How("dirichlet", alpha=alpha)
    if kind == "iid" and not colon:
        return How("iid")
    if kind == "one-class" and not colon:
        return How("one-class")
    raise ConfigError(f"spread: expected one of {FORMS} with ALPHA above 0, got {how!r}. Choose one of these.")


def spread(
    samples_classes: Sequence[int] | None,
    num_samples: int,
    num_devices: int,
    *,
    how: str,
    weights: Sequence[float] | None,
    seed: int,
    column: Sequence[object] | None = None,
) -> list[list[int]]:
    """Deals `num_samples` samples to `num_devices` devices.

    - `iid`: at random, sizes equal or by weight;
    - `dirichlet:ALPHA`: each device draws its mix of classes around the overall mix, the smaller ALPHA the purer;
      sizes equal or by weight; where a class runs out, devices take more of their other classes;
    - `one-class`: one class per device; classes share devices, or devices classes, where their numbers differ;
    - `column:NAME`: all samples with one value in the column go to one device, loads as even as can be dealt.

    Args:
      samples_classes: The class of each sample; None where there are none.
      num_samples: How many samples there are.
      num_devices: How many devices there are.
      how: One of the forms above.
      weights: One number above 0 per device; None for equal.
      seed: Same seed, same parts.
      column: The value of each sample in the column, for `column:NAME`.

    Returns:
      For each device its samples, in ascending order.

    Raises:
      ConfigError: `how` or `weights` is wrong, or there are no classes to go by.
      DataError: too few samples, or too few different values, for so many devices.
    """
    way = parse(how)
    weights_D = _checked_weights(weights, num_devices)
    if num_samples < num_devices:
        raise DataError(
            f"spread {how}: expected at least one sample per device, got {num_samples} samples for {num_devices} "
            "devices. Use fewer devices."
        )
    rng = np.random.default_rng(seed)
    if way.kind == "iid":
        parts = _split(rng.permutation(num_samples), weights_D)
    elif way.kind == "column":
        parts = _by_column(_groups(column, num_samples, how), weights_D, how, rng)
    elif way.kind == "dirichlet":
        parts = _by_dirichlet(_groups(samples_classes, num_samples, how), weights_D, way.alpha, rng)
    else:
        parts = _by_one_class(_groups(samples_classes, num_samples, how), weights_D, rng)
    return [np.sort(part).tolist() for part in parts]


def label_table(parts: Sequence[Sequence[int]], classes: Sequence[int], names: Sequence[str]) -> list[dict[str, int]]:
    """Numbers of samples of each class, for each device; all names are there, in their order.

    Example:
        >>> label_table([[0, 1], [2]], classes=[1, 0, 1], names=["no", "yes"])
        [{'no': 1, 'yes': 1}, {'no': 0, 'yes': 1}]
    """
    counts = [np.bincount(np.asarray(classes)[list(part)], minlength=len(names)).tolist() for part in parts]
    return [dict(zip(names, row, strict=True)) for row in counts]


def _by_column(groups: list[Ints], weights_D: Floats, how: str, rng: np.random.Generator) -> list[Ints]:
    if len(groups) < len(weights_D):
        raise DataError(
            f"spread {how}: expected at least one value per device, got {len(groups)} values for {len(weights_D)} "
            "devices. Use fewer devices or another column."
        )
    return _deal(groups, weights_D, rng)


def _by_one_class(groups: list[Ints], weights_D: Floats, rng: np.random.Generator) -> list[Ints]:
    if len(weights_D) < len(groups):
        return _deal(groups, weights_D, rng)
    members: list[list[int]] = [[] for _ in groups]

    def supply(group: int) -> tuple[bool, float]:
        """A class without a device comes first, then the one with the most samples for the weight that shares it."""
        return not members[group], len(groups[group]) / (weights_D[members[group]].sum() or 1)

    for device in _heaviest_first(weights_D, rng):
        has_more = [group for group in range(len(groups)) if len(groups[group]) > len(members[group])]
        members[max(has_more, key=supply)].append(device)
    parts = {
        device: part
        for group, devices in zip(groups, members, strict=True)
        for device, part in zip(devices, _split(rng.permutation(group), weights_D[devices]), strict=True)
    }
    return [parts[device] for device in range(len(weights_D))]


def _by_dirichlet(groups: list[Ints], weights_D: Floats, alpha: float, rng: np.random.Generator) -> list[Ints]:
    """Devices take turns in random order, and draw a class from their mix and then any sample of that class.

    Federated Learning Based on Dynamic Regularization
        Durmus Alp Emre Acar et al. ICLR 2021. https://arxiv.org/abs/2111.04263 (how its data is divided)
    """
    counts_K = np.array([len(group) for group in groups])
    # The overall mix is the mean, so that ALPHA -> infinity is iid; in balanced data each class has plain ALPHA.
    mixes_DK = rng.dirichlet(alpha * counts_K / counts_K.mean(), size=len(weights_D))
    sizes_D = _sizes(int(counts_K.sum()), weights_D)
    turns_N = rng.permutation(np.repeat(np.arange(len(weights_D)), sizes_D))
    drawn_N = _draw_classes(mixes_DK[turns_N], counts_K, rng)
    samples_N = np.empty(len(turns_N), np.int64)
    for number, group in enumerate(groups):
        samples_N[drawn_N == number] = rng.permutation(group)
    return [samples_N[turns_N == device] for device in range(len(weights_D))]


def _draw_classes(mixes_NK: Floats, counts_K: Ints, rng: np.random.Generator) -> Ints:
    """Draws class k `counts_K[k]` times in all: each turn by its own mix, as long as its classes last."""
    drawn_N: Ints = np.empty(len(mixes_NK), np.int64)
    left_K, start = counts_K.copy(), 0
    while start < len(mixes_NK):
        chances_NK = mixes_NK[start:] * (left_K > 0)
        chances_NK[chances_NK.sum(axis=1) == 0] = left_K  # all that this device wanted is gone: it takes what is there
        cumulative_NK = np.cumsum(chances_NK, axis=1)
        dice_N1 = rng.random((len(chances_NK), 1)) * cumulative_NK[:, -1:]
        guess_N = (dice_N1 >= cumulative_NK).sum(axis=1)
        # The guesses hold until a class would be drawn once too often; from there on it is drawn again without it.
        too_often = [np.flatnonzero(guess_N == k)[left : left + 1] for k, left in enumerate(left_K)]
        end = int(min(np.concatenate([*too_often, [len(guess_N)]])))
        drawn_N[start : start + end] = guess_N[:end]
        left_K -= np.bincount(guess_N[:end], minlength=len(left_K))
        start += end
    return drawn_N


def _deal(groups: list[Ints], weights_D: Floats, rng: np.random.Generator) -> list[Ints]:
    """Gives whole groups to devices, the largest first, each to the device with the least load for its weight."""
    hands: list[list[Ints]] = [[] for _ in weights_D]
    devices = _heaviest_first(weights_D, rng)

    def load(device: int) -> float:
        """Samples per weight: 0 only where there are none yet, so no device stays empty."""
        return float(sum(map(len, hands[device])) / weights_D[device])

    for group in sorted(groups, key=len, reverse=True):
        hands[min(devices, key=load)].append(group)
    return [np.concatenate(hand) for hand in hands]


def _heaviest_first(weights_D: Floats, rng: np.random.Generator) -> list[int]:
    """The devices by falling weight, equal ones in random order."""
    order = rng.permutation(len(weights_D))
    devices: list[int] = order[np.argsort(-weights_D[order], kind="stable")].tolist()
    return devices


def _split(samples: Ints, weights_D: Floats) -> list[Ints]:
    return np.split(samples, np.cumsum(_sizes(len(samples), weights_D))[:-1])


def _sizes(total: int, weights_D: Floats) -> Ints:
    """Whole numbers that add up to `total`, in proportion to the weights (largest remainders), none of them 0."""
    shares_D = total * weights_D / weights_D.sum()
    sizes_D: Ints = np.floor(shares_D).astype(np.int64)
    sizes_D[np.argsort(sizes_D - shares_D, kind="stable")[: total - sizes_D.sum()]] += 1
    while sizes_D.min() == 0:
        sizes_D[sizes_D.argmax()] -= 1
        sizes_D[sizes_D.argmin()] += 1
    return sizes_D


def _groups(values: Sequence[object] | None, num_samples: int, how: str) -> list[Ints]:
    """The samples of each class, or of each value of the column; by first appearance."""
    if values is None:
        raise ConfigError(f"spread {how}: expected classes or a column to go by, got none. Use iid or column:NAME.")
    if len(values) != num_samples:
        raise DataError(
            f"spread {how}: expected a class or value for each of {num_samples} samples, got {len(values)}. "
            "Leave out those of dropped rows."
        )
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for sample, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise DataError(
                f"spread {how}: expected a string or a number for each sample, got {shortened(value)} for sample "
                f"{sample}. Correct the row or use another column."
            )
        groups[value].append(sample)
    return [np.array(group) for group in groups.values()]


def _checked_weights(weights: Sequence[float] | None, num_devices: int) -> Floats:
    if num_devices < 1:
        raise ConfigError(f"spread: expected at least one device, got {num_devices}. Use a fleet with devices.")
    weights_D = np.ones(num_devices) if weights is None else np.asarray(weights, np.float64)
    if weights_D.shape != (num_devices,) or not (np.isfinite(weights_D) & (weights_D > 0)).all():
        raise ConfigError(
            f"spread: expected {num_devices} weights above 0, one per device, got {shortened(weights)}. Correct them."
        )
    return weights_D
