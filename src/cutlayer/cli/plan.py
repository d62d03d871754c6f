"""`cutlayer plan`: what a run would take, before it is started and without reading a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.cli.flags import Given
from cutlayer.cli.terminal import console, table

if TYPE_CHECKING:
    from rich.table import Table

    from cutlayer.policies.plan import Situation
    from cutlayer.run.inputs import RunInputs
    from cutlayer.run.rehearsed import Rehearsed
    from cutlayer.types import RoundPlan

TOKENS_MULTIPLE = 8  # what batches are padded to


def plan(given: Given) -> None:
    """Show each device's cut, memory, bytes, FLOPs and step time, and the time and bytes of the run. Trains nothing."""
    config = given.config()
    from cutlayer.run.inputs import method_of, prepare
    from cutlayer.run.loop import Logbook
    from cutlayer.run.rehearsed import rehearse
    from cutlayer.run.run import first_plan, situation_of

    terminal = console()
    with terminal.status("reading the data"):
        inputs = prepare(config)
        method, situation = method_of(config), situation_of(inputs, Logbook())
        first_round = first_plan(inputs, method, situation)
        num_tokens = typical_tokens(inputs)
        rehearsed = rehearse(inputs, method, first_round, num_tokens)
    terminal.print(device_rows(inputs, situation, first_round, num_tokens))
    need = (
        method.round.server_bytes(first_round, situation.costs, situation.num_tokens)
        + rehearsed.fold_bytes * situation.rounds
    )
    for line in summary_lines(inputs, situation, need, rehearsed, num_tokens):
        terminal.print(line, soft_wrap=True)


def typical_tokens(inputs: RunInputs) -> int:
    """Tokens of an average batch: texts of like length go together, so each counts by its own padded length."""
    padded = -(-inputs.train.lengths // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
    return round(float(padded.clip(max=inputs.config.data.max_length).mean()))


def device_rows(inputs: RunInputs, situation: Situation, plan: RoundPlan, num_tokens: int) -> Table:
    """One row per device: memory at the longest batch, everything else of one step with `num_tokens` tokens a text."""
    from cutlayer.report.human import human_bytes, human_seconds
    from cutlayer.server.forecast import Forecast
    from cutlayer.types import Cost

    costs, forecast = inputs.costs, Forecast(inputs.fleet, inputs.costs, inputs.compression)
    numbers = ("cut", "memory", "of", "up/step", "down/step", "device GFLOP", "server GFLOP", "step")
    shown = table("device", numbers=numbers)
    for device in plan.devices:
        shape = (device, device.batch_size, num_tokens)
        work = (costs.device(*shape), Cost(0.0, 0.0, 0) if device.alone else costs.server(*shape))
        shown.add_row(
            device.device,
            str(device.cut),
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
    from cutlayer.report.human import human_bytes, human_seconds

    rounds, server = inputs.config.train.rounds, inputs.fleet.server
    adapters = f"{len(rehearsed.owners)} adapter{'s' if len(rehearsed.owners) > 1 else ''} with moments"
    folds = f", {rounds} folds" if rehearsed.fold_bytes else ""
    verdict = "" if need <= server.memory_bytes else ", which is too much"

    def traffic(times: int) -> str:
        up, down = human_bytes(times * rehearsed.bytes_up), human_bytes(times * rehearsed.bytes_down)
        return f"{human_seconds(times * rehearsed.seconds)}, {up} up, {down} down"

    return [
        f"server: {human_bytes(need)} of {human_bytes(server.memory_bytes)}{verdict} "
        f"(one base, {adapters}, one step, activations that wait{folds})",
        f"round:  {traffic(1)} ({situation.local_steps} steps with batches of {situation.batch_size} x {num_tokens} "
        f"tokens{f' in {situation.micro_batches} parts' if situation.micro_batches > 1 else ''})",
        f"run:    {traffic(rounds)} ({rounds} rounds)",
    ]
