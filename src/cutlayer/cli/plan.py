"""`cutlayer plan`: what a run would take, before it is started and without reading a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.cli.flags import Given
from cutlayer.cli.terminal import console, table

if TYPE_CHECKING:
    from rich.table import Table

    from cutlayer.cli.rehearsal import Rehearsed
    from cutlayer.policies.plan import Known
    from cutlayer.prepare import Ingredients
    from cutlayer.types import RoundPlan

TOKENS_MULTIPLE = 8  # what batches are padded to


def plan(given: Given) -> None:
    """Show each device's cut, memory, bytes, FLOPs and step time, and the time and bytes of the run. Trains nothing."""
    config = given.config()
    from cutlayer.cli.rehearsal import rehearse
    from cutlayer.coordinator import Logbook
    from cutlayer.prepare import prepare
    from cutlayer.run import first_plan, known_of, method_of

    terminal = console()
    with terminal.status("reading the data"):
        ingredients = prepare(config)
        method, known = method_of(config), known_of(ingredients, Logbook())
        first_round = first_plan(ingredients, method, known)
        num_tokens = typical_tokens(ingredients)
        rehearsed = rehearse(ingredients, method, first_round, num_tokens)
    terminal.print(device_rows(ingredients, known, first_round, num_tokens))
    need = method.round.server_bytes(first_round, known.costs, known.num_tokens) + rehearsed.fold_bytes * known.rounds
    for line in summary_lines(ingredients, known, need, rehearsed, num_tokens):
        terminal.print(line, soft_wrap=True)


def typical_tokens(ingredients: Ingredients) -> int:
    """Tokens of an average batch: texts of like length go together, so each counts by its own padded length."""
    padded = -(-ingredients.train.lengths // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
    return round(float(padded.clip(max=ingredients.config.data.max_length).mean()))


def device_rows(ingredients: Ingredients, known: Known, plan: RoundPlan, num_tokens: int) -> Table:
    """One row per device: memory at the longest batch, everything else of one step with `num_tokens` tokens a text."""
    from cutlayer.report.human import human_bytes, human_seconds
    from cutlayer.server.forecast import Forecast
    from cutlayer.types import Cost

    costs, forecast = ingredients.costs, Forecast(ingredients.fleet, ingredients.costs, ingredients.compression)
    numbers = ("cut", "memory", "of", "up/step", "down/step", "device GFLOP", "server GFLOP", "step")
    shown = table("device", numbers=numbers)
    for device in plan.devices:
        shape = (device, device.batch_size, num_tokens)
        work = (costs.device(*shape), Cost(0.0, 0.0, 0) if device.head else costs.server(*shape))
        shown.add_row(
            device.device,
            str(device.cut),
            human_bytes(known.device_bytes(device)),
            human_bytes(known.profile(device.device).memory_bytes),
            *(human_bytes(crossing) for crossing in forecast.crossing_bytes(*shape)),
            *(f"{(cost.forward_flops + cost.backward_flops) / 1e9:.3g}" for cost in work),
            human_seconds(forecast.local_step(*shape)),
        )
    return shown


def summary_lines(
    ingredients: Ingredients, known: Known, need: int, rehearsed: Rehearsed, num_tokens: int
) -> list[str]:
    """The round, the server and the run."""
    from cutlayer.report.human import human_bytes, human_seconds

    rounds, server = ingredients.config.train.rounds, ingredients.fleet.server
    adapters = f"{len(rehearsed.owners)} adapter{'s' if len(rehearsed.owners) > 1 else ''} with moments"
    folds = f", {rounds} folds" if rehearsed.fold_bytes else ""
    verdict = "" if need <= server.memory_bytes else ", which is too much"

    def traffic(times: int) -> str:
        up, down = human_bytes(times * rehearsed.bytes_up), human_bytes(times * rehearsed.bytes_down)
        return f"{human_seconds(times * rehearsed.seconds)}, {up} up, {down} down"

    return [
        f"server: {human_bytes(need)} of {human_bytes(server.memory_bytes)}{verdict} "
        f"(one base, {adapters}, one step, activations that wait{folds})",
        f"round:  {traffic(1)} ({known.local_steps} steps with batches of {known.batch_size} x {num_tokens} tokens"
        f"{f' in {known.micro_batches} parts' if known.micro_batches > 1 else ''})",
        f"run:    {traffic(rounds)} ({rounds} rounds)",
    ]
