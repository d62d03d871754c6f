"""What is read from a method's text is what Python would say of it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from cutlayer.methods.described import described
from cutlayer.methods.table import TABLE


@pytest.mark.parametrize("name", sorted(TABLE))
def test_it_is_the_signature_of_the_builder(name: str) -> None:
    said, parameters = described(name), dict(inspect.signature(TABLE[name].build).parameters)
    assert said.seeded == (parameters.pop("seed", None) is not None)
    assert {key: (option.kind, option.default) for key, option in said.options.items()} == {
        key: (parameter.annotation, parameter.default) for key, parameter in parameters.items()
    }
    assert list(said.options) == list(parameters)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_method_says_what_it_is_and_what_its_options_decide(name: str) -> None:
    said = described(name)
    assert said.title.endswith(".")
    assert all(option.help for option in said.options.values())
    assert all("  " not in text and "\n" not in text for text in (said.title, *said.notes))


def test_help_and_notes_may_go_over_several_lines() -> None:
    said = described("memsfl")
    assert said.options["weighted"].help == (
        "Whether devices count by what they trained in the mean; False counts them alike (the 1/U of the paper's "
        "objective)."
    )
    [note] = said.notes
    assert note.startswith("What is certain (abstract, reviews): ")
    assert note.endswith("`optimal` and `momentum` are ours.")


def test_reading_the_table_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from cutlayer.methods.table import TABLE\n"
        "assert all(row.options is not None for row in TABLE.values())\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
