"""The description of a method in its file, read from the text: to list every method must not cost importing torch.

    name: what it does, on one line or two.        the title; what stands behind the colon is the summary

    Title of the paper                             the paper
        Authors. Year. https://arxiv.org/abs/...

        the paper        here                      a table of its steps
        ...

    What is certain, what is our reading.          notes

    Neutral: KEY=VALUE, KEY=VALUE.                 options with which one device trains as ordinary training does,
                                                   where its defaults do more; or `Neutral: none, WHY.`

    Evidence: how sure its facts are.

A method is the builder of its own name in a file of its name; of another's file, the function that is named. Its
keyword arguments are the method's options, and its docstring has a paragraph for each.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutlayer.errors import ConfigError
from cutlayer.reading import yaml_value

KINDS = frozenset({"int", "float", "str", "bool", "None"})
"""Types that an option may have: a run file and a command line must be able to say its value."""
SAID = frozenset({"Evidence", "Neutral"})
"""Words with which paragraphs begin that are no notes."""
RESERVED = frozenset({"name", "source"})
"""Keys of the section `method` of a run file that are no options."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a method.

    Attributes:
      kind: its type, as the builder writes it: `int | None`.
      default: a plain value.
      help: what it decides; empty where the builder's docstring does not say.
    """

    kind: str
    default: Any
    help: str

    @property
    def typed(self) -> str:
        """The default as -o takes it."""
        return spelled(self.default)


def spelled(value: Any) -> str:
    """A plain value as -o takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Description:
    """One method file.

    Attributes:
      title: the first paragraph.
      summary: the title behind its colon.
      paper: `arXiv NUMBER`, or another address, or `none`.
      evidence: how sure its facts are.
      notes: the paragraphs under the table: what is certain, what is our reading, what is ours.
      neutral: options with which one device trains as ordinary training does, where the defaults do more.
      never_plain: why there are none; empty where there are.
      options: the builder's keyword arguments, but for the seed.
      seeded: whether the builder takes the run's seed.
    """

    title: str
    summary: str
    paper: str
    evidence: str
    notes: tuple[str, ...]
    neutral: Mapping[str, Any]
    never_plain: str
    options: dict[str, Option]
    seeded: bool


def described(text: str, function: str, where: str) -> Description:
    """Reads a method file.

    Args:
      text: Of the file.
      function: The builder.
      where: By which messages name the method.

    Raises:
      ConfigError: It is no Python, has no such function, or one whose arguments cannot be options.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{where}: expected Python, got {getattr(error, 'msg', error)}{line}. Correct it.") from error
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    if function not in functions:
        raise ConfigError(
            f"{where}: expected a function {function} in the file, got {', '.join(functions) or 'none'}. "
            "Name the function that builds the method."
        )
    options = _options(functions[function], where)
    seeded = options.pop("seed", None) is not None
    plain, said = _paragraphs(ast.get_docstring(module) or "")
    title, notes = _title_and_notes(plain)
    neutral, never_plain = _neutral(said.get("Neutral", ""), options, where)
    return Description(
        title=title,
        summary=(title.partition(": ")[2] or title).removesuffix("."),
        paper=_paper(" ".join(plain[1] if len(plain) > 1 else [])),
        evidence=said.get("Evidence", "not said"),
        notes=notes,
        neutral=neutral,
        never_plain=never_plain,
        options=options,
        seeded=seeded,
    )


def _options(builder: ast.FunctionDef, where: str) -> dict[str, Option]:
    """The builder's keyword arguments.

    Raises:
      ConfigError: One of them cannot be an option.
    """
    given, helps = builder.args, _argument_helps(ast.get_docstring(builder) or "")
    others = [*given.posonlyargs, *given.args, *filter(None, (given.vararg, given.kwarg))]
    if others:
        raise ConfigError(
            f"{where}: expected options that are keyword-only (def {builder.name}(*, rank: int = 8)), got the argument "
            f"{others[0].arg}. Put a * before the first one."
        )
    return {
        argument.arg: _option(argument, default, helps.get(argument.arg, ""), where)
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    }


def _option(argument: ast.arg, default: ast.expr | None, help: str, where: str) -> Option:
    kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
    if not kind or not kinds_of(kind) <= KINDS:
        raise ConfigError(
            f"{where}: expected int, float, str, bool or None (with | between them) as the type of the option "
            f"{argument.arg}, got {kind or 'none'}. Write it into the signature."
        )
    if argument.arg in RESERVED:
        raise ConfigError(
            f"{where}: expected options that a run file does not mean itself, got {argument.arg}. Rename it."
        )
    if default is None:
        raise ConfigError(f"{where}: expected a default for the option {argument.arg}, got none. Write one.")
    try:
        return Option(kind, ast.literal_eval(default), help)
    except ValueError as error:
        raise ConfigError(
            f"{where}: expected a plain value as the default of the option {argument.arg}, got {ast.unparse(default)}. "
            "Write one into the signature."
        ) from error


def kinds_of(kind: str) -> set[str]:
    """The types between the bars."""
    return {part.strip() for part in kind.split("|")}


def _paragraphs(docstring: str) -> tuple[list[list[str]], dict[str, str]]:
    """The paragraphs, each as its lines; and apart from them, on one line, those that begin with a word of `SAID`."""
    plain, said = list[list[str]](), dict[str, str]()
    for paragraph in docstring.split("\n\n"):
        word, colon, rest = paragraph.partition(": ")
        if colon and word in SAID:
            said[word] = " ".join(rest.split()).removesuffix(".")
        else:
            plain.append(paragraph.splitlines())
    return plain, said


def _title_and_notes(paragraphs: list[list[str]]) -> tuple[str, tuple[str, ...]]:
    """The first paragraph, and those that follow the last table, each on one line."""
    tables = [index for index, lines in enumerate(paragraphs) if lines and all(line.startswith(" ") for line in lines)]
    after = max(tables, default=1) + 1  # without a table: after the paper
    title = " ".join(paragraphs[0]) if paragraphs else ""
    return title, tuple(" ".join(map(str.strip, lines)) for lines in paragraphs[after:])


def _neutral(text: str, options: Mapping[str, Option], where: str) -> tuple[dict[str, Any], str]:
    """The options of `Neutral:`, read as -o reads them, or why there are none.

    Raises:
      ConfigError: One of them is none of the method's.
    """
    none, comma, reason = text.partition(", ")
    if none == "none" and comma:
        return {}, reason
    neutral: dict[str, Any] = {}
    for pair in text.split(", ") if text else ():
        name, equals, value = pair.partition("=")
        if name not in options or not equals:
            raise ConfigError(
                f"{where}: expected Neutral: KEY=VALUE, KEY=VALUE with options of the method, or Neutral: none, WHY, "
                f"got {pair!r}. Correct it."
            )
        neutral[name] = yaml_value(value, where)
    return neutral, ""


def _paper(paragraph: str) -> str:
    """The address of a paper, by its number on arXiv if it has one; `none` without an address."""
    addresses = re.findall(r"https?://\S+", paragraph)
    numbers = [found[1] for address in addresses if (found := re.search(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", address))]
    return f"arXiv {numbers[0]}" if numbers else (addresses or ["none"])[0].rstrip(".,;)")


def _argument_helps(docstring: str) -> dict[str, str]:
    """The text of each argument under `Args:`, on one line."""
    listed = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    indent = len(listed) - len(listed.lstrip(" "))
    helps = re.findall(rf"^ {{{indent}}}(\w+): (.+(?:\n {{{indent + 1},}}.+)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in helps}
