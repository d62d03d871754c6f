"""Spreading: always a partition without an empty device; and each way is what it is called."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.data.spread import label_table, parse, spread
from cutlayer.errors import ConfigError, DataError

WAYS = ["iid", "dirichlet:0.1", "dirichlet:1e-9", "dirichlet:100", "one-class", "column:k"]


def classes_of(*counts: int) -> list[int]:
    classes = [number for number, count in enumerate(counts) for _ in range(count)]
    shuffled: list[int] = np.random.default_rng(0).permutation(classes).tolist()
    return shuffled


def deal(
    how: str, classes: list[int], num_devices: int, weights: list[float] | None = None, seed: int = 0
) -> list[list[int]]:
    return spread(classes, len(classes), num_devices, how=how, weights=weights, seed=seed, column=classes)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), how=st.sampled_from(WAYS), seed=st.integers(0, 2**32))
def test_a_partition_in_which_no_device_is_empty(data: st.DataObject, how: str, seed: int) -> None:
    counts = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    most = len(counts) if how == "column:k" else min(sum(counts), 12)
    num_devices = data.draw(st.integers(1, most))
    weight = st.floats(0.01, 100)
    weights = data.draw(st.one_of(st.none(), st.lists(weight, min_size=num_devices, max_size=num_devices)))
    classes = classes_of(*counts)
    parts = deal(how, classes, num_devices, weights, seed)
    assert len(parts) == num_devices
    assert all(parts)
    assert sorted(sample for part in parts for sample in part) == list(range(len(classes)))
    assert all(a < b for part in parts for a, b in pairwise(part))
    assert deal(how, classes, num_devices, weights, seed) == parts


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "one-class"])
def test_seeds_differ(how: str) -> None:
    classes = classes_of(50, 50, 50)
    assert deal(how, classes, 6, seed=0) != deal(how, classes, 6, seed=1)


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.1", "dirichlet:100"])
def test_sizes_are_equal_or_by_weight(how: str) -> None:
    classes = classes_of(30, 50, 21)
    assert sorted(map(len, deal(how, classes, 4))) == [25, 25, 25, 26]
    assert [len(part) for part in deal(how, classes, 3, weights=[1, 2, 7.1])] == [10, 20, 71]
    assert [len(part) for part in deal(how, classes, 3, weights=[1e-6, 1e6, 1e-6])] == [1, 99, 1]


def shares(how: str, seed: int = 0) -> NDArray[np.float64]:
    """(D, K) the class mix of each of ten devices; the overall mix is 0.2, 0.5, 0.3."""
    classes = classes_of(2000, 5000, 3000)
    table = label_table(deal(how, classes, 10, seed=seed), classes, ["a", "b", "c"])
    counts = np.array([list(row.values()) for row in table], np.float64)
    counts /= counts.sum(axis=1, keepdims=True)
    return counts


@pytest.mark.parametrize("how", ["iid", "dirichlet:1e7"])
def test_a_large_alpha_is_iid(how: str) -> None:
    assert abs(shares(how) - [0.2, 0.5, 0.3]).max() < 0.06  # four standard deviations of 1000 draws


def test_the_smaller_alpha_the_purer_the_devices() -> None:
    alphas = (1000, 1, 0.05)
    purity = [np.mean([shares(f"dirichlet:{alpha}", seed).max(axis=1) for seed in range(5)]) for alpha in alphas]
    assert purity == sorted(purity)
    assert purity[0] < 0.55
    assert purity[2] > 0.7


def test_devices_that_want_the_same_class_share_it() -> None:
    """They take turns, so it is not that the first one gets it all and the last one what nobody wanted."""
    classes = classes_of(100, 100)
    tables = [label_table(deal("dirichlet:1e-9", classes, 2, seed=seed), classes, ["a", "b"]) for seed in range(20)]
    of_first = {table[0]["a"] for table in tables}
    shared = of_first - {0, 100}
    assert {0, 100} < of_first
    assert all(30 < num < 70 for num in shared)


def test_devices_want_a_class_as_often_as_there_is_of_it() -> None:
    """Nine in ten samples are of class a: then two devices want the same class in 0.81 + 0.01 of all cases."""
    classes = classes_of(900, 100)
    tables = [label_table(deal("dirichlet:1e-9", classes, 2, seed=seed), classes, ["a", "b"]) for seed in range(60)]
    assert np.mean([table[0]["b"] not in (0, 100) for table in tables]) == pytest.approx(0.82, abs=0.15)


@pytest.mark.parametrize("num_devices", [3, 4, 7, 20])
def test_one_class_is_pure_where_there_are_enough_devices(num_devices: int) -> None:
    classes = classes_of(60, 90, 30)
    parts = deal("one-class", classes, num_devices)
    assert all(len({classes[sample] for sample in part}) == 1 for part in parts)


def test_one_class_gives_more_devices_to_the_larger_class() -> None:
    classes = classes_of(60, 90, 30)
    parts = deal("one-class", classes, 6)
    assert sorted(map(len, parts)) == [30] * 6
    heavy = deal("one-class", classes_of(100), 3, weights=[1, 3, 6])
    assert [len(part) for part in heavy] == [10, 30, 60]


def test_one_class_gives_no_more_devices_to_a_class_than_it_has_samples() -> None:
    classes = classes_of(3, 1)
    parts = deal("one-class", classes, 4, weights=[100, 1, 1, 1])
    assert [len(part) for part in parts] == [1, 1, 1, 1]
    assert [classes[sample] for sample in parts[0]] == [0]  # the heaviest has its choice: the largest class


def test_one_class_deals_a_class_at_random() -> None:
    assert deal("one-class", [0] * 50, 2, seed=0) != deal("one-class", [0] * 50, 2, seed=1)


def test_one_class_with_fewer_devices_keeps_classes_whole() -> None:
    classes = classes_of(50, 10, 20, 30, 10)
    parts = deal("one-class", classes, 2)
    assert not {classes[sample] for sample in parts[0]} & {classes[sample] for sample in parts[1]}
    assert [len(part) for part in parts] == [60, 60]


def test_a_column_keeps_its_groups_whole_and_sizes_even() -> None:
    users = [f"user-{number}" for number in classes_of(*[7] * 11, 30, 1)]
    parts = spread(None, len(users), 4, how="column:user", weights=None, seed=0, column=users)
    owners = [{users[sample] for sample in part} for part in parts]
    assert sum(map(len, owners)) == len(set(users)) == 13
    assert sorted(map(len, parts)) == [22, 28, 28, 30]
    heavy = spread(None, len(users), 2, how="column:user", weights=[1, 3], seed=0, column=users)
    assert [len(part) for part in heavy] == pytest.approx([27, 81], abs=7)


def test_the_label_table() -> None:
    assert label_table([[0, 1, 3], [2]], [1, 0, 1, 1], ["no", "yes", "never"]) == [
        {"no": 1, "yes": 2, "never": 0},
        {"no": 0, "yes": 1, "never": 0},
    ]


def test_the_forms() -> None:
    assert (parse("iid").kind, parse("one-class").kind) == ("iid", "one-class")
    assert (parse("dirichlet:0.5").kind, parse("dirichlet:0.5").alpha) == ("dirichlet", 0.5)
    assert (parse("column:a:b").kind, parse("column:a:b").column) == ("column", "a:b")


NO_FORMS = ["IID", "iid:3", "one-class:2", "column", "column:", "shards", "dirichlet"]
NO_ALPHAS = ["", "x", "0", "-1", "nan", "inf"]


@pytest.mark.parametrize("how", ["", *NO_FORMS, *(f"dirichlet:{alpha}" for alpha in NO_ALPHAS)])
def test_no_form(how: str) -> None:
    with pytest.raises(ConfigError, match="expected one of iid, dirichlet:ALPHA, one-class, column:NAME"):
        deal(how, classes_of(5, 5), 2)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected 2 weights above 0, one per device"):
        deal("iid", classes_of(5, 5), 2, weights)


def test_no_devices() -> None:
    with pytest.raises(ConfigError, match="expected at least one device, got 0"):
        deal("iid", classes_of(5), 0)


@pytest.mark.parametrize("how", ["iid", "dirichlet:1", "one-class"])
def test_fewer_samples_than_devices(how: str) -> None:
    with pytest.raises(DataError, match="got 3 samples for 4 devices"):
        deal(how, classes_of(2, 1), 4)


def test_fewer_groups_than_devices() -> None:
    with pytest.raises(DataError, match="spread column:k: expected at least one value per device, got 2 values for 3"):
        deal("column:k", classes_of(9, 9), 3)


@pytest.mark.parametrize("how", ["dirichlet:1", "one-class", "column:k"])
def test_nothing_to_go_by(how: str) -> None:
    with pytest.raises(ConfigError, match=r"expected classes or a column to go by, got none. Use iid or column:NAME"):
        spread(None, 10, 2, how=how, weights=None, seed=0)


def test_a_column_of_another_length() -> None:
    with pytest.raises(DataError, match="for each of 3 samples, got 2"):
        spread(None, 3, 2, how="column:k", weights=None, seed=0, column=["a", "b"])


@pytest.mark.parametrize("value", [None, ["a"]])
def test_a_value_that_cannot_be_grouped(value: object) -> None:
    with pytest.raises(DataError, match=r"expected a string or a number for each sample, got .* for sample 1"):
        spread(None, 3, 2, how="column:k", weights=None, seed=0, column=["a", value, "b"])
