"""`cutlayer fleets`: the fleets that there are."""

from __future__ import annotations

from cutlayer.cli.terminal import AsJson, console, print_json


def fleets(*, as_json: AsJson = False) -> None:
    """List the built-in fleets."""
    from cutlayer.fleet.profile import list_fleets
    from cutlayer.report.human import human_bytes
    from cutlayer.report.listing import Listing

    if as_json:
        print_json([fleet.model_dump(mode="json", exclude_none=True) for fleet in list_fleets()])
        return
    shown = Listing("fleet", "devices", "TFLOP/s", "memory", "server", "source", prose=("server", "source"))
    for fleet in list_fleets():
        speeds = [device.flops_per_second / 1e12 for device in fleet.devices]
        memories = [device.memory_bytes for device in fleet.devices]
        shown.add_row(
            fleet.name,
            str(len(fleet.devices)),
            f"{min(speeds):.3g} to {max(speeds):.3g}",
            f"{human_bytes(min(memories))} to {human_bytes(max(memories))}",
            f"{fleet.server.flops_per_second / 1e12:.3g} TFLOP/s, {human_bytes(fleet.server.memory_bytes)}",
            fleet.source,
        )
    console().print(shown)
