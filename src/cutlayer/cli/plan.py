"""`cutlayer plan`: what a run would take, before it is started and without reading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cutlayer.cli.flags import Given
from cutlayer.cli.resumed import check_words
from cutlayer.cli.terminal import AsJson, console, print_json, progress_console, starting
from cutlayer.reading import counted

if TYPE_CHECKING:
    from cutlayer.methods.method import Method
    from cutlayer.policies.plan import Situation
    from cutlayer.policies.stragglers import Stragglers
    from cutlayer.report.listing import Listing
    from cutlayer.run.inputs import RunInputs
    from cutlayer.run.rehearsed import Rehearsed
    from cutlayer.types import RoundPlan

TOKENS_MULTIPLE = 8  # what batches are padded to
ROUNDS_WITHOUT_BARRIER = 20  # so many are rehearsed, and their mean is shown


def plan(given: Given, *, as_json: AsJson = False) -> None:
    """Show each device's cut, memory, bytes, FLOPs and step time, and the time and bytes of the run. Trains nothing."""
    config, terminal, progress = given.config(), console(), progress_console()
    check_words(config)
    with starting(progress, quiet=not progress.is_interactive):
        from cutlayer.device.process import own_bytes
        from cutlayer.run.inputs import method_of, prepare, stragglers_of
        from cutlayer.run.loop import Logbook
        from cutlayer.run.rehearsed import rehearse
        from cutlayer.run.run import first_plan, situation_of

        own = own_bytes()  # before there is data
    with progress.status("reading the data"):
        inputs = prepare(config)
        method, situation = method_of(config), situation_of(inputs, Logbook())
        first_round = first_plan(inputs, method, situation)
        num_tokens = typical_tokens(inputs)
        policy = stragglers_of(config, method)
        how: dict[str, Any] = {}
        if policy.late == "keep":
            how = {"keeping": policy, "rounds": ROUNDS_WITHOUT_BARRIER}
        rehearsed = rehearse(inputs, method, first_round, num_tokens, **how)
        deadlines = planned_deadlines(method, situation, first_round)
        comings = comings_and_goings(inputs, method, situation, rehearsed, num_tokens, policy, how)
        judging = judging_lines(inputs, method, first_round, num_tokens)
    need = (
        method.round.server_bytes(first_round, situation.costs, situation.num_tokens)
        + rehearsed.fold_bytes * situation.rounds
    )
    if as_json:
        notes = [*judging, *deadlines, *without_barrier(policy, len(first_round.devices)), *comings]
        print_json(figures(inputs, situation, first_round, need, rehearsed, num_tokens, own) | {"notes": notes})
        return
    terminal.print(device_rows(inputs, situation, first_round, num_tokens))
    lines = summary_lines(inputs, situation, need, rehearsed, num_tokens)
    for line in [
        process_line(inputs, situation, first_round, own),
        *lines,
        *judging,
        *deadlines,
        *without_barrier(policy, len(first_round.devices)),
        *comings,
    ]:
        terminal.print(line, soft_wrap=True)


def figures(
    inputs: RunInputs,
    situation: Situation,
    plan: RoundPlan,
    need: int,
    rehearsed: Rehearsed,
    num_tokens: int,
    own: int,
) -> dict[str, Any]:
    """The figures of the table and the sentences, in bytes, FLOPs and seconds.

    Args:
      inputs: What the run is made of.
      situation: Of the whole fleet.
      plan: Of the first round.
      need: Bytes of the server.
      rehearsed: A round.
      num_tokens: Of every text.
      own: Bytes of a process that has imported what a device imports.
    """
    from cutlayer.server.forecast import Forecast

    costs, forecast, rounds = inputs.costs, Forecast(inputs.fleet, inputs.costs, inputs.compression), situation.rounds
    devices = []
    for device in plan.devices:
        shape = (device, device.batch_size, num_tokens)
        up, down = forecast.crossing_bytes(*shape)
        here, there = costs.device(*shape), None if device.alone else costs.server(*shape)
        devices.append(
            {
                "device": device.device,
                "cut": device.cut,
                "memory_bytes": situation.device_bytes(device),
                "of_bytes": situation.profile(device.device).memory_bytes,
                "step_bytes_up": up,
                "step_bytes_down": down,
                "step_flops_device": here.forward_flops + here.backward_flops,
                "step_flops_server": there.forward_flops + there.backward_flops if there else 0.0,
                "step_seconds": forecast.local_step(*shape),
            }
        )
    one = {"seconds": rehearsed.seconds, "bytes_up": rehearsed.bytes_up, "bytes_down": rehearsed.bytes_down}
    return {
        "method": inputs.config.method.name,
        "model": inputs.config.model.name,
        "fleet": inputs.fleet.name,
        "batch": {"size": situation.batch_size, "tokens": num_tokens, "micro_batches": situation.micro_batches},
        "devices": devices,
        "process_bytes": own,
        "server": {"memory_bytes": need, "of_bytes": inputs.fleet.server.memory_bytes},
        "round": {"local_steps": situation.local_steps, **one},
        "run": {"rounds": rounds, **{key: rounds * value for key, value in one.items()}},
    }


def process_line(inputs: RunInputs, situation: Situation, plan: RoundPlan, own: int) -> str:
    """The line on the memory that the process of the device with the largest part takes in all.

    Args:
      inputs: What the run is made of.
      situation: Of the whole fleet.
      plan: Of a round.
      own: Bytes of a process that has imported what a device imports.
    """
    from cutlayer.device.process import foretold_bytes
    from cutlayer.report.human import human_bytes

    largest = max(plan.devices, key=situation.device_bytes)
    most = foretold_bytes(own, inputs.costs, largest, largest.samples_in_flight, situation.num_tokens)
    return (
        f"device: at most {human_bytes(most)} for the whole process of {largest.device} ({human_bytes(own)} before "
        "there is a model; the rest is its part, and holes in the heap)"
    )


def judging_lines(inputs: RunInputs, method: Method, plan: RoundPlan, num_tokens: int) -> list[str]:
    """The line on the cost of judging by devices, on top of the run's rounds; no line where they hold no rows out.

    Args:
      inputs: What the run is made of.
      method: The run's.
      plan: Of a round, whose devices judge.
      num_tokens: Of every text.
    """
    if not inputs.config.data.hold_out:
        return []
    from cutlayer.run.rehearsed import rehearse_judging

    rehearsed, train = rehearse_judging(inputs, method, plan, num_tokens), inputs.config.train
    rows = sum(len(inputs.held_out(index).rows) for index in range(len(inputs.fleet.devices)))
    times = 1 + -(-train.rounds // train.eval_every)  # before the first round, and after the last whatever it is
    return [
        f"judged: {taken(rehearsed, 1)} each time, by {rows} rows that {len(inputs.parts)} devices hold out; "
        f"{taken(rehearsed, times)} on top of the run ({times} times)"
    ]


def planned_deadlines(method: Method, situation: Situation, first_round: RoundPlan) -> list[str]:
    """The deadlines of all rounds, as far as plans know them before the run; no line where rounds have none."""
    if first_round.deadline_seconds is None:
        return []
    from cutlayer.report.human import human_seconds

    seconds = [method.make_plan(round, situation).deadline_seconds or 0.0 for round in range(situation.rounds)]
    first, last, all_of_them = map(human_seconds, (seconds[0], seconds[-1], sum(seconds)))
    return [f"deadlines: {first} in the first round, {last} in the last, {all_of_them} in all"]


def without_barrier(policy: Stragglers, num_devices: int) -> list[str]:
    """The line on when a round ends that waits for nobody in particular; no line where late work is not kept."""
    if policy.late != "keep":
        return []
    ends = f"with {policy.enough(num_devices)} updates" if policy.fraction else f"after {policy.seconds:g} s"
    return [
        f"no barrier: of {num_devices} devices at most {policy.at_once(num_devices)} are at work at a time, a round "
        f"ends {ends}, and who is late goes on (the round above is a mean of {ROUNDS_WITHOUT_BARRIER})"
    ]


def comings_and_goings(
    inputs: RunInputs,
    method: Method,
    situation: Situation,
    rehearsed: Rehearsed,
    num_tokens: int,
    policy: Stragglers,
    how: Mapping[str, Any],
) -> list[str]:
    """The line on what becomes of a round where devices come and go; no line where they stay.

    Args:
      inputs: What the run is made of.
      method: The run's.
      situation: Of the whole fleet.
      rehearsed: A round in which all of them stay.
      num_tokens: Of every batch.
      policy: For stragglers.
      how: It was rehearsed.
    """
    from cutlayer.fleet.clock import run_virtual
    from cutlayer.fleet.presence import mustered, share_here
    from cutlayer.report.human import human_seconds
    from cutlayer.run.rehearsed import rehearse

    fleet = inputs.fleet
    shares = [share_here(device) for device in fleet.devices]
    if all(share == 1 for share in shares):
        return []
    here = run_virtual(mustered(fleet, 0, situation.seed, all_of_them=policy.waits_for_all))
    plan = method.make_plan(0, situation.of(here))
    first = rehearse(inputs, method, plan, num_tokens, away=True, **how)
    until = "" if how else " until the last is done"
    return [
        f"availability: {sum(shares):.1f} of {len(shares)} devices are there on average; the first round has "
        f"{len(plan.devices)} of them and takes {human_seconds(first.seconds)}{until} "
        f"({human_seconds(rehearsed.seconds)} with all of them, if none left)"
    ]


def typical_tokens(inputs: RunInputs) -> int:
    """Tokens of an average batch: texts of like length go together, so each counts by its own padded length."""
    padded = -(-inputs.train.lengths // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
    return round(float(padded.clip(max=inputs.config.data.max_length).mean()))


def device_rows(inputs: RunInputs, situation: Situation, plan: RoundPlan, num_tokens: int) -> Listing:
    """One row per device: memory at the longest batch, everything else of one step with `num_tokens` tokens a text."""
    from cutlayer.report.human import human_bytes, human_seconds
    from cutlayer.report.listing import Listing
    from cutlayer.server.forecast import Forecast
    from cutlayer.types import Cost

    costs, forecast = inputs.costs, Forecast(inputs.fleet, inputs.costs, inputs.compression)
    numbers = ("cut", "memory", "of", "up/step", "down/step", "device GFLOP", "server GFLOP", "step")
    shown = Listing("device", numbers=numbers, most=("cut", "step", "memory", "of"))
    for device in plan.devices:
        shape = (device, device.batch_size, num_tokens)
        work = (costs.device(*shape), Cost(0.0, 0.0, 0) if device.alone else costs.server(*shape))
        shown.add_row(
            device.device,
            f"{device.cut} of {costs.num_blocks}",
            human_bytes(situation.device_bytes(device)),
            human_bytes(situation.profile(device.device).memory_bytes),
            *(human_bytes(crossing) for crossing in forecast.crossing_bytes(*shape)),
            *(f"{(cost.forward_flops + cost.backward_flops) / 1e9:.3g}" for cost in work),
            human_seconds(forecast.local_step(*shape)),
        )
    return shown


def summary_lines(
    inputs: RunInputs, situation: Situation, need: int, rehearsed: Rehearsed, num_tokens: int
) -> list[str]:
    """The round, the server and the run."""
    from cutlayer.report.human import human_bytes

    rounds, server = inputs.config.train.rounds, inputs.fleet.server
    adapters = f"{len(rehearsed.owners)} adapter{'s' if len(rehearsed.owners) > 1 else ''} with moments"
    folds = f", {rounds} folds" if rehearsed.fold_bytes else ""
    verdict = "" if need <= server.memory_bytes else ", which is too much"
    shape = f"{situation.batch_size} x {num_tokens} tokens"
    parts = f" in {situation.micro_batches} parts" if situation.micro_batches > 1 else ""

    return [
        f"server: {human_bytes(need)} of {human_bytes(server.memory_bytes)}{verdict} "
        f"(one base, {adapters}, one step, activations that wait{folds})",
        f"round:  {taken(rehearsed, 1)} ({counted(situation.local_steps, 'step')} with batches of {shape}{parts})",
        f"run:    {taken(rehearsed, rounds)} ({counted(rounds, 'round')})",
    ]


def taken(rehearsed: Rehearsed, times: int) -> str:
    """The time of what was rehearsed and what it sends, so many times."""
    from cutlayer.report.human import human_bytes, human_seconds

    up, down = human_bytes(times * rehearsed.bytes_up), human_bytes(times * rehearsed.bytes_down)
    return f"{human_seconds(times * rehearsed.seconds)}, {up} up, {down} down"
