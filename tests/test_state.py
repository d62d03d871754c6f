"""State trees: branches come apart as they were joined, copies are copies, restricted and joined again is the whole."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.state import State, Stateless, joined


def leaf(seed: int, *names: str, **facts: Any) -> State:
    generator = torch.Generator().manual_seed(seed)
    return State(facts, {name: torch.randn(3, generator=generator) for name in names})


def same(one: State, other: State) -> bool:
    return (
        one.facts == other.facts
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    )


BRANCHES = {
    "phone": leaf(0, "a.weight", "b.weight#exp_avg", rows=3),
    "phone-2": leaf(1, "a.weight"),
    "pho": leaf(2, "0/a.weight", "10/a.weight"),  # names may have slashes, only branches may not
    "nothing": State(),
    "*": leaf(3, order=[1, 2]),
}


def test_branches_come_apart_as_they_were_joined() -> None:
    tree = joined(BRANCHES)
    found = tree.branches()
    assert list(found) == list(BRANCHES)
    for name, branch in BRANCHES.items():
        assert same(found[name], branch)
        assert same(tree.branch(name), branch), "one at a time as all at once"
    assert same(joined(found), tree)


def test_a_tree_has_as_many_levels_as_it_takes() -> None:
    tree = joined({"server": joined({"adapters": joined(BRANCHES), "ledger": State({"counted": {}})}), "run": State()})
    deep = tree.branch("server").branch("adapters")
    assert same(deep, joined(BRANCHES))
    assert same(deep.branch("pho"), BRANCHES["pho"])
    assert tree.facts["server"]["adapters"]["phone"] == {"rows": 3}
    assert tree.tensors["server/adapters/pho/10/a.weight"] is BRANCHES["pho"].tensors["10/a.weight"]


def test_pairs_join_as_a_mapping_does() -> None:
    assert same(joined((name, branch) for name, branch in BRANCHES.items()), joined(BRANCHES))


names = st.sampled_from(["a", "b", "a b", "a-2", "ü", "*"])


@given(st.dictionaries(names, st.dictionaries(names, st.integers(0, 9), max_size=3), max_size=5), st.sets(names))
def test_a_tree_restricted_and_joined_again_is_the_whole(tree: dict[str, dict[str, int]], some: set[str]) -> None:
    """The branches that two workers have of a tree are the tree, whoever has which branch."""
    whole = {name: leaf(len(name), *made, n=sum(made.values())) for name, made in tree.items()}
    one = joined({name: branch for name, branch in whole.items() if name in some})
    other = joined({name: branch for name, branch in whole.items() if name not in some})
    assert same(joined({name: {**one.branches(), **other.branches()}[name] for name in whole}), joined(whole))


def test_a_copy_does_not_train_on() -> None:
    live = joined({"phone": leaf(0, "a", rows=[1, 2])})
    copies = {"copied": live.copied(), "sent": live.sent()}
    before = live.copied()
    live.tensors["phone/a"].add_(1)
    live.facts["phone"]["rows"].append(3)
    for how, copy in copies.items():
        assert same(copy, before), how
    assert not same(live, before)


def test_a_copy_has_no_graph() -> None:
    live = State(tensors={"a": torch.nn.Parameter(torch.ones(2))})
    for made in (live.copied(), live.moved("cpu"), live.sent()):
        assert not made.tensors["a"].requires_grad
        assert torch.equal(made.tensors["a"], torch.ones(2))


def test_what_is_where_it_belongs_is_not_copied() -> None:
    live = leaf(0, "a")
    assert live.moved("cpu").tensors["a"].data_ptr() == live.tensors["a"].data_ptr()
    assert live.sent().tensors["a"].data_ptr() != live.tensors["a"].data_ptr(), "a process of its own gets its own"
    assert live.moved("meta").tensors["a"].device.type == "meta"


def test_a_keeper_of_nothing_goes_on_from_anything() -> None:
    keeper = Stateless()
    assert keeper.state() == State()
    keeper.load(State({"of": "an older version"}))
    assert keeper.state() == State()
