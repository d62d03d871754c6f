"""What a method's file says of itself, read from its text: to list every method must not cost importing torch.

A method is the builder of its own name in the file of its name. The file's docstring is a title, the paper, the table
`the paper -> here`, and what is certain against what is our reading; the builder's has one paragraph for each option.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a method.

    Attributes:
      kind: its type, as the builder writes it: `int | None`.
      default: a plain value.
      help: what it decides.
    """

    kind: str
    default: Any
    help: str

    @property
    def typed(self) -> str:
        """The default as -o takes it."""
        value = self.default
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Description:
    """One method file.

    Attributes:
      title: the first line.
      notes: the paragraphs under the table: what is certain, what is our reading, what is ours.
      options: the builder's keyword arguments, but for the seed.
      seeded: whether the builder takes the run's seed.
    """

    title: str
    notes: tuple[str, ...]
    options: dict[str, Option]
    seeded: bool


@cache
def described(name: str) -> Description:
    """Reads the file of the method `name`, which must be there and keep the form."""
    module = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    [builder] = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    helps = _argument_helps(ast.get_docstring(builder) or "")
    unsaid = [argument.arg for argument in builder.args.kwonlyargs if argument.arg not in helps]
    assert not unsaid, f"methods/{name}.py: the builder's docstring says nothing of {', '.join(unsaid)} under Args"
    options = {
        argument.arg: Option(ast.unparse(argument.annotation), ast.literal_eval(default), helps[argument.arg])
        for argument, default in zip(builder.args.kwonlyargs, builder.args.kw_defaults, strict=True)
        if argument.annotation is not None and default is not None
    }
    seeded = options.pop("seed", None) is not None
    title, notes = _title_and_notes(ast.get_docstring(module) or "")
    return Description(title, notes, options, seeded)


def _title_and_notes(docstring: str) -> tuple[str, tuple[str, ...]]:
    """The first paragraph, and those that follow the last table, each on one line."""
    paragraphs = [paragraph.splitlines() for paragraph in docstring.split("\n\n")]
    tables = [index for index, lines in enumerate(paragraphs) if all(line.startswith(" ") for line in lines)]
    after = max(tables, default=1) + 1  # without a table: after the paper
    return " ".join(paragraphs[0]), tuple(" ".join(map(str.strip, lines)) for lines in paragraphs[after:])


def _argument_helps(docstring: str) -> dict[str, str]:
    """The text of each argument under `Args:`, on one line."""
    listed = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    helps = re.findall(r"^  (\w+): (.+(?:\n {3,}.+)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in helps}
