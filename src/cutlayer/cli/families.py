"""`cutlayer families`: the model families that can be cut."""

from __future__ import annotations

from cutlayer.cli.terminal import AsJson, console, print_json


def families(*, as_json: AsJson = False) -> None:
    """List the model families, with LoRA's default targets and the ways of pooling, the default first."""
    from cutlayer.model.families import FAMILIES
    from cutlayer.report.listing import Listing

    if as_json:
        fields = {"family": "name", "tasks": "tasks", "lora_targets": "attention", "pooling": "poolings"}
        print_json([{key: getattr(row, field) for key, field in fields.items()} for row in FAMILIES.values()])
        return
    shown = Listing("family", "tasks", "LoRA targets", "pooling", prose=("tasks", "LoRA targets", "pooling"))
    for row in FAMILIES.values():
        shown.add_row(row.name, ", ".join(row.tasks), ", ".join(row.attention), ", ".join(row.poolings))
    console().print(shown)
    console().print("Other models that are built like Llama are recognised, tried on a small one, and cut.")
