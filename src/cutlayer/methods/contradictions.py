"""Choices that cannot be together: two that would contradict each other in silence are refused here, and only here.

Each choice says of itself what it needs, or what it does to others; a rule holds two such sayings against each other.
No rule knows a method, a shape or a policy by name, so whoever writes one is held to all of them by what it says.

    who says it                      what it says                                what cannot be beside it
    -----------------------------    ----------------------------------------    ------------------------------------
    Round.cuts_batches (not)         batches stay whole                          train.micro_batches
    Round.together                   devices wait for each other                 a quorum
    RoundPlan.deadline_seconds       the plan closes its round                   waiting for all
    Round.keeps_activations          what was sent is trained on again later     a fold, moved weights, base dropout
    Shape.copies_weights             devices may hold copies of weights          a fold, which does not reach them
    Method.moved                     the base's weights move                     a fold of the same weights
    ModelSettings.quantised          weights are int8 or nf4                     a fold, moved weights
    Shape.devices = alone            a device trains the whole model             a cut below the head
    Shape.devices = frozen           nothing on a device trains                  an adapter on a block that it holds
    Shape.devices = training         something on each device trains             a device without an adapter
    Shape.flow without backward      devices move without gradients              a rule by which to follow them
    Round.equal_cuts                 features of several devices are merged      unequal cuts, unequal ranks
    Aggregate.mixed_ranks (not)      tensors are averaged as they are            unequal ranks on one block
    Round.divisible (not)            what is trained depends on all devices      several workers
    late work is kept                a task may outlive its round                a part on the server, a fold, moved
                                                                                 weights, sites, several workers
    Robust                           devices are held against each other         one result of all, sites, devices that
                                                                                 train nothing
    Robust.by_number                 number by number                            an aggregate of unequal ranks
    a quorum                         who has finished is counted                 several workers, of whom none knows

`check` is asked when a run is read and when a round is planned, `check_plan` of every plan, `check_workers` when a
server begins. What an option may be by itself is said by whoever has the option.

Not refused, because nothing is contradicted: a codec of what a method never sends (a comparison gives one wire to all).
That devices which train one server adapter agree on ranks and scopes is seen where owners are (`server/adapters.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Aggregate
from cutlayer.policies.robust import NONE, Robust
from cutlayer.policies.stragglers import Stragglers
from cutlayer.rounds.round import Round
from cutlayer.types import DevicePlan, RoundPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The choices of a method and a run file, as far as they may contradict each other.

    Attributes:
      round: the shape of the conversation.
      aggregate: many adapters to one.
      stragglers: how long rounds wait.
      folds: whether a round is added to the base's weights.
      moves: whether the base's weights move by themselves.
      descends: whether a rule is chosen by which adapters follow their gradients.
      micro_batches: into which a batch is cut.
      base_dropout: whether the base model's own dropout is on.
      quantised: the form of the base's weights where they are not plain numbers.
      robust: how much one device may move the mean.
    """

    round: Round
    aggregate: Aggregate
    stragglers: Stragglers
    folds: bool = False
    moves: bool = False
    descends: bool = False
    micro_batches: int = 1
    base_dropout: bool = False
    quantised: str | None = None
    robust: Robust = NONE


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what was chosen.

    Attributes:
      chosen: by the method and the run file.
      plan: of a round.
      num_blocks: of the model.
    """

    chosen: Chosen
    plan: RoundPlan
    num_blocks: int


def check(chosen: Chosen) -> None:
    """Raises ConfigError where two choices contradict each other, whatever is planned."""
    _refuse(rule(chosen) for rule in RULES)


def check_plan(chosen: Chosen, plan: RoundPlan, num_blocks: int) -> None:
    """Raises ConfigError where a plan contradicts what its round or its aggregate needs.

    Args:
      chosen: By the method and the run file.
      plan: Of a round.
      num_blocks: Of the model.
    """
    planned = Planned(chosen, plan, num_blocks)
    _refuse(rule(planned) for rule in RULES_OF_PLANS)


def check_held_out(chosen: Chosen) -> None:
    """Raises ConfigError where devices that hold rows out cannot judge by them what the server has."""
    if chosen.moves:
        raise ConfigError(
            "data.hold_out: expected a method that leaves the base's weights where they are, or folds into them, got "
            "one that moves them: devices are told where they stand when a round opens, and not after the last. "
            "Give the server validation data, and leave hold_out out."
        )


def check_held_out_at_one(hold_out: float) -> None:
    """Raises ConfigError where several processes of a server would have to ask devices what they hold out."""
    if hold_out:
        raise ConfigError(
            f"data.hold_out: expected 0 with several workers, got {hold_out:g}: the process that evaluates talks with "
            "no device there. Serve with one process, or give the server validation data."
        )


def check_patience(seconds: float | None) -> None:
    """Raises ConfigError where several processes of a server would have to go on without a device that is away."""
    if seconds is not None:
        raise ConfigError(
            f"--patience: expected none with several workers, got {seconds:g}: the process that waits talks with no "
            "device there. Serve with one process, or set train.stragglers to a deadline."
        )


def check_workers(method: str, round: Round, stragglers: Stragglers, divisible: Callable[[], Sequence[str]]) -> None:
    """Raises ConfigError where several workers would not train what one server trains.

    Args:
      method: Its name.
      round: The method's.
      stragglers: How long rounds wait.
      divisible: Names methods that several workers can serve.
    """
    if not round.divisible:
        raise ConfigError(
            f"--workers: expected a method whose server trains an adapter for each device, or none, got {method}: its "
            f"server trains one on what all devices send. Leave --workers out, or choose one of "
            f"{', '.join(divisible())}."
        )
    if stragglers.late == "keep":
        raise ConfigError(
            "--workers: expected late work that is dropped or used in its round, got keep: a worker holds one round at "
            "a time. Leave --workers out, or change train.late."
        )
    if stragglers.fraction is not None:
        raise ConfigError(
            f"--workers: expected rounds that wait for all or until a deadline, got a quorum of "
            f"{stragglers.fraction:g}: a worker does not know who has finished at another. Change train.stragglers."
        )


def _refuse(found: Iterable[str | None]) -> None:
    for why in found:
        if why is not None:
            raise ConfigError(why)


# ------------------------------------------------------------------ whatever is planned


def whole_batches_in_parts(chosen: Chosen) -> str | None:
    """A batch that must stay whole, and micro-batches."""
    if chosen.micro_batches == 1 or chosen.round.cuts_batches:
        return None
    return (
        "train.micro_batches: expected 1 where no answer comes to a batch, where labels stay on devices, or where one "
        f"adapter on the server learns from several devices in turn, got {chosen.micro_batches}. Leave it out, or "
        "choose a method in which each device trains a server adapter of its own (memsfl), or all take turns (sl)."
    )


def a_quorum_of_devices_that_wait(chosen: Chosen) -> str | None:
    """Devices that wait for each other, and a quorum: one that is late keeps it from finishing."""
    if chosen.stragglers.fraction is None or not chosen.round.together:
        return None
    return (
        "train.stragglers: expected a deadline where devices wait for each other in a round, got a quorum of "
        f"{chosen.stragglers.fraction:g}: one that is late keeps all from finishing. Write deadline:SECONDS."
    )


def a_fold_under_kept_activations(chosen: Chosen) -> str | None:
    """A base that folds change, and activations of the base as it was."""
    if not (chosen.folds and chosen.round.keeps_activations):
        return None
    return (
        "method.fold: expected a round that keeps no activations where the base's weights change, got kept ones, which "
        "would be those of another model. Build stream(cache=False), or leave fold out."
    )


def moved_weights_under_kept_activations(chosen: Chosen) -> str | None:
    """A base that moves, and activations of the base as it was."""
    if not (chosen.moves and chosen.round.keeps_activations):
        return None
    return (
        "method.moved: expected a round that keeps no activations where the base's weights move, got kept ones, which "
        "would be those of another model. Build stream(cache=False), or leave moved out."
    )


def dropout_of_kept_activations(chosen: Chosen) -> str | None:
    """Activations that are kept because they repeat, and dropout, with which they do not."""
    if not (chosen.base_dropout and chosen.round.keeps_activations):
        return None
    return (
        "method.cache: expected model.base_dropout=false where activations are kept, got true: they would differ every "
        "time. Set model.base_dropout=false, or method.cache=false."
    )


def a_fold_beside_copies(chosen: Chosen) -> str | None:
    """A fold, and devices with copies of weights, which it does not reach."""
    if not (chosen.folds and chosen.round.shape.copies_weights):
        return None
    return (
        "method.fold: expected devices that hold no copies of weights where the base's weights change, got the shape "
        f"{chosen.round.shape.name}: a fold does not reach their copies. Leave out the pruning, or fold."
    )


def a_fold_of_moved_weights(chosen: Chosen) -> str | None:
    """Weights that are a function of where they began, and a fold, which begins them elsewhere."""
    if not (chosen.folds and chosen.moves):
        return None
    return (
        "method.fold: expected weights that nothing else changes, got moved ones (method.moved): where they stand is "
        "reckoned from the base as it was. Leave out one of the two."
    )


def changes_of_quantised_weights(chosen: Chosen) -> str | None:
    """Weights in few bits, and a base that changes: every change would round them anew."""
    if chosen.quantised is None or not (chosen.folds or chosen.moves):
        return None
    return (
        "model.dtype: expected fp32, bf16 or fp16 for a method that changes the base's own weights, got "
        f"{chosen.quantised}, which every change would round anew. Set model.dtype=fp32, or choose a method that "
        "leaves them as they are (fedlora)."
    )


def late_work_on_a_base_that_moves(chosen: Chosen) -> str | None:
    """Late work that is kept, and weights of the base that move under a device that is at it."""
    if chosen.stragglers.late != "keep" or not (chosen.folds or chosen.moves):
        return None
    return (
        "train.late: expected drop or use where the base's own weights move from round to round, got keep: they would "
        "move under a device that is at work. Change train.late, or choose a method that leaves them as they are "
        "(fedlora)."
    )


def late_work_at_sites(chosen: Chosen) -> str | None:
    """Late work that is kept, and sites, which begin anew whenever the server has averaged them."""
    if chosen.stragglers.late != "keep" or not chosen.round.shape.at_sites:
        return None
    return (
        "train.late: expected drop or use where sites average their devices, got keep: a site may have a new adapter "
        "by the time the device is done. Change train.late, or choose a method without sites (fedlora)."
    )


def a_robust_mean_of_one(chosen: Chosen) -> str | None:
    """A policy that holds devices against each other, and rounds that hand over what came of all of them."""
    round = chosen.round
    one = getattr(round, "one_result", False) or round.shape.at_sites or round.shape.devices == "frozen"
    if not (chosen.robust.on and one):
        return None
    return (
        "train.robust: expected none where devices go on from each other, report to sites, or train nothing, got a "
        "policy that holds what each has trained against the others'. Leave it out, or choose a method that averages "
        "devices' adapters (fedlora, memsfl)."
    )


def a_median_over_ranks(chosen: Chosen) -> str | None:
    """A mean number by number, and adapters whose numbers do not lie in the same places."""
    if not (chosen.robust.by_number and chosen.aggregate.mixed_ranks):
        return None
    return (
        f"train.robust: expected none or clip:FACTOR where adapters of different ranks are joined by "
        f"{chosen.aggregate.name}, got a mean number by number. Write clip:3, or choose a method of equal ranks "
        "(fedlora)."
    )


Rule = Callable[[Chosen], str | None]
"""The reason why two choices cannot be together; None where they can."""
RULES: tuple[Rule, ...] = (
    whole_batches_in_parts,
    a_quorum_of_devices_that_wait,
    a_fold_under_kept_activations,
    moved_weights_under_kept_activations,
    dropout_of_kept_activations,
    a_fold_beside_copies,
    a_fold_of_moved_weights,
    changes_of_quantised_weights,
    late_work_on_a_base_that_moves,
    late_work_at_sites,
    a_robust_mean_of_one,
    a_median_over_ranks,
)


# ------------------------------------------------------------------ of a plan


def a_deadline_where_all_are_awaited(planned: Planned) -> str | None:
    """A plan that closes its round, and a policy that waits for everybody: nobody could be late."""
    seconds = planned.plan.deadline_seconds
    if seconds is None or not planned.chosen.stragglers.waits_for_all:
        return None
    return (
        "train.stragglers: expected deadline:SECONDS where the method plans deadlines, got wait_all, and a deadline of "
        f"{seconds:g} s. Leave train.stragglers out."
    )


def late_work_beside_the_servers(planned: Planned) -> str | None:
    """Late work that is kept, and a device with which the server trains: its adapter would be another by then."""
    cut = _first(planned, lambda device: not device.alone)
    if planned.chosen.stragglers.late != "keep" or cut is None:
        return None
    return (
        "train.late: expected drop or use where the server trains a part of the model, got keep, and device "
        f"{cut.device} is cut at block {cut.cut}: the adapter on the server would be another by the time it is done. "
        "Change train.late, or choose a method whose devices train alone (fedlora)."
    )


def a_part_where_devices_are_alone(planned: Planned) -> str | None:
    """Devices that train alone, and one that holds a part of the model."""
    shape = planned.chosen.round.shape
    part = _first(planned, lambda device: not (device.alone and device.cut == planned.num_blocks))
    if shape.devices != "alone" or part is None:
        return None
    return (
        f"method.plan: expected the whole model on every device in the shape {shape.name}, in which devices are alone, "
        f"got {part.cut} of {planned.num_blocks} blocks on device {part.device}. Plan whole_model(), or build another "
        "round."
    )


def an_adapter_where_devices_are_frozen(planned: Planned) -> str | None:
    """Devices that only run forward, and one with an adapter, which nothing would train."""
    trains = _first(planned, _trains)
    if planned.chosen.round.shape.devices != "frozen" or trains is None:
        return None
    return (
        f"method.plan: expected no adapter on devices that only run forward, got one below the cut {trains.cut} of "
        f"device {trains.device}, which nothing would train. Plan ranks_above_deepest_cut()."
    )


def a_frozen_device_that_must_train(planned: Planned) -> str | None:
    """A round about what devices train, and one that trains nothing."""
    shape = planned.chosen.round.shape
    frozen = _first(planned, lambda device: not _trains(device))
    if shape.devices != "training" or frozen is None:
        return None
    return (
        f"method.plan: expected devices that train something in the shape {shape.name}, got none of it below the cut "
        f"{frozen.cut} of device {frozen.device}. Cut it deeper, or leave it out."
    )


def a_rule_for_gradients_that_no_device_has(planned: Planned) -> str | None:
    """A rule by which adapters follow gradients, and devices that train alone without any."""
    shape = planned.chosen.round.shape
    if not planned.chosen.descends or _first(planned, lambda one: one.alone and not shape.flow(one).backward) is None:
        return None
    return (
        f"method.trains: expected none where devices move by forward passes alone, got one with {shape.name}: what is "
        "learnt is known from the seeds and scalars of its own rule. Leave trains out."
    )


def unequal_cuts_merged(planned: Planned) -> str | None:
    """Features that are merged, and devices that are cut at different blocks."""
    cuts = {device.cut for device in planned.plan.devices}
    if not planned.chosen.round.equal_cuts or len(cuts) <= 1:
        return None
    return (
        f"method.cut: expected one cut where features of several devices are merged, got {sorted(cuts)}. "
        "Set method.cut to one number, or serve one device at a time (memsfl)."
    )


def unequal_ranks_merged(planned: Planned) -> str | None:
    """Features that are merged, and devices of different ranks."""
    ranks = _ranks(planned.plan)
    if not planned.chosen.round.equal_cuts or len(ranks) <= 1:
        return None
    return (
        "method.rank: expected the same LoRA ranks on every device where features of several devices are merged, got "
        f"{sorted(ranks)}. Give every device the same, or serve one device at a time (memsfl)."
    )


def unequal_ranks_averaged(planned: Planned) -> str | None:
    """Tensors that are averaged as they are, and devices that have them in different shapes."""
    ranks = _ranks(planned.plan)
    if planned.chosen.aggregate.mixed_ranks or len(ranks) <= 1 or _agree(ranks):
        return None
    return (
        f"method.aggregate: expected equal LoRA ranks on each block for {planned.chosen.aggregate.name}, got "
        f"{sorted(ranks)}. Give every device one rank, or aggregate by padding, SVD or stacking "
        "(hetlora, flexlora, flora)."
    )


RuleOfPlans = Callable[[Planned], str | None]
"""The reason why a plan contradicts what was chosen; None where it does not."""
RULES_OF_PLANS: tuple[RuleOfPlans, ...] = (
    a_deadline_where_all_are_awaited,
    late_work_beside_the_servers,
    a_part_where_devices_are_alone,
    an_adapter_where_devices_are_frozen,
    a_frozen_device_that_must_train,
    a_rule_for_gradients_that_no_device_has,
    unequal_cuts_merged,
    unequal_ranks_merged,
    unequal_ranks_averaged,
)


def _first(planned: Planned, found: Callable[[DevicePlan], bool]) -> DevicePlan | None:
    return next(filter(found, planned.plan.devices), None)


def _trains(device: DevicePlan) -> bool:
    """Whether a block that the device holds has an adapter; a device with the head always trains that."""
    blocks = range(device.cut) if device.blocks is None else device.blocks
    return device.head or any(block < device.cut for block in blocks)


def _ranks(plan: RoundPlan) -> set[tuple[int, ...]]:
    """The ranks with which devices may end the round."""
    return {ranks for device in plan.devices for ranks in (device.ranks, *_other_ranks(device))}


def _other_ranks(device: DevicePlan) -> list[tuple[int, ...]]:
    """Ranks with which a device may end a round, besides those of its plan."""
    return [ranks for clause in device.clauses for ranks in clause.other_ranks]


def _agree(ranks: set[tuple[int, ...]]) -> bool:
    """Whether all devices that have an adapter on a block have it at the same rank."""
    blocks = zip(*ranks, strict=False)
    return () not in ranks and all(len({rank for rank in block if rank}) <= 1 for block in blocks)
