"""The documentation site: README and docs/ as pages, the API from docstrings. `make docs` runs this.

    python docs/build_site.py [OUT]        build/site by default; open index.html, no server and no network is needed

What is in git stays as a reader on a code host sees it. Here it is copied to OUT's neighbour `pages`, links are turned
to where a page is now, files that pages link to become pages of their own, and Zensical (docs/decisions/0050) builds
it, with each of its warnings an error. Then this script holds it to three rules: every page is in the navigation,
every public name has a docstring, and no page asks another host for anything.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
SOURCE = PROJECT / "src" / "cutlayer"

NAVIGATION: dict[str, list[str]] = {
    "Begin": ["tutorial-fleet.md", "tutorial-method.md", "notebooks/first-run.md"],
    "Use": [
        *("data.md", "models.md", "choosing.md", "methods.md", "comparing.md", "fleet-files.md", "compression.md"),
        *("deploy.md", "watching.md", "serving.md", "SECURITY.md"),
    ],
    "Extend": ["your-own-method.md", "adding-a-family.md"],
    "Understand": ["architecture.md", "protocol.md", "claims.md", "glossary.md", "lab-log.md", "CHANGELOG.md"],
}
"""Pages by heading, in order; a page that stands nowhere comes last under Use. Decisions and the API are found."""

GROUPS = {
    "Commands as functions": ("api", "run", "config", "errors", "model"),
    "Methods and plans": ("methods", "types"),
    "Policies": ("policies",),
    "Shapes of a round": ("rounds",),
    "Steps of the server": ("server",),
}
"""The public names of the package, by the rooms in which they are defined."""

ROOMS = (
    *("cutlayer.types", "cutlayer.errors", "cutlayer.state", "cutlayer.config", "cutlayer.policies.plan"),
    *("cutlayer.rounds.local", "cutlayer.rounds.turn", "cutlayer.gate.forms", "cutlayer.wire.link"),
    *("cutlayer.wire.messages", "cutlayer.device.shape", "cutlayer.device.device", "cutlayer.device.follow"),
    *("cutlayer.device.attentive", "cutlayer.testing.laws", "cutlayer.testing.playground", "cutlayer.testing.tiny"),
)
"""Modules that a method in a package of its own imports from, beside the public names (examples/my-method)."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown", ".sh": "bash"}
EXAMPLES = f"{DOCS / 'griffe_examples.py'}:ExampleSections"
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")

CONFIG = """[project]
site_name = "cutlayer"
site_description = "Fine-tune one large language model with LoRA on private data that stays on many weak machines."
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
extra_css = ["site.css"]
nav = {nav}

[project.theme]
language = "en"
font = false
features = [
  "content.code.copy",
  "navigation.footer",
  "navigation.tabs",
  "navigation.top",
  "search.highlight",
  "toc.follow",
]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Switch to the dark"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Switch to the light"

[project.markdown_extensions]
tables = {{}}
attr_list = {{}}
toc.permalink = true
toc.toc_depth = 3
pymdownx.highlight.pygments_lang_class = true
pymdownx.superfences = {{}}

[project.plugins.mkdocstrings.handlers.python]
paths = [{source}]

[project.plugins.mkdocstrings.handlers.python.options]
extensions = [{examples}]
docstring_style = "google"
docstring_section_style = "list"
heading_level = 2
show_root_heading = true
show_root_full_path = false
show_source = false
show_if_no_docstring = true
show_symbol_type_heading = true
members_order = "source"
filters = ["!^_"]
separate_signature = true
line_length = 100
signature_crossrefs = true
"""

CSS = """.md-grid { max-width: 74rem; }
.md-typeset table:not([class]) { font-size: .7rem; }
.md-typeset table:not([class]) th { min-width: 0; }
.md-typeset td:first-child code { white-space: nowrap; }
.md-typeset pre > code { font-size: .72rem; }
"""


def public_names() -> dict[str, str]:
    """The names of `cutlayer.__all__`, and the module in which each is defined."""
    stub = (SOURCE / "__init__.pyi").read_text(encoding="utf-8")
    return {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as \w+$", stub, re.MULTILINE)}


class Pages:
    """The pages as they are written.

    Args:
      folder: Where to; it is emptied.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._homes: dict[Path, str] = {PROJECT / "README.md": "index.md"}
        for name in ("SECURITY.md", "CHANGELOG.md"):
            self._homes[PROJECT / name] = name
        for page in sorted(DOCS.rglob("*.md")):
            self._homes[page] = str(page.relative_to(DOCS))
        for notebook in sorted(DOCS.rglob("*.ipynb")):
            self._homes[notebook] = str(notebook.relative_to(DOCS).with_suffix(".md"))
        self._todo: list[Path] = list(self._homes)

    def write(self) -> None:
        """Writes every page, and every file that a page links to."""
        while self._todo:
            origin = self._todo.pop(0)
            home = self._homes[origin]
            if origin.suffix in (".svg", ".png"):
                target = self._folder / home
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(origin, target)
                continue
            text = page_of(origin)
            self.put(home, self._linked(text, origin, home) if origin.suffix == ".md" else text)

    def put(self, home: str, text: str) -> None:
        """Writes one page."""
        file = self._folder / home
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def _linked(self, text: str, origin: Path, home: str) -> str:
        """The text with its links to where their targets are now; what is in a block of code is no link."""
        pieces = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
        for index in range(0, len(pieces), 2):
            pieces[index] = LINK.sub(lambda found: self._link(found, origin, home), pieces[index])
        return "".join(pieces)

    def _link(self, found: re.Match[str], origin: Path, home: str) -> str:
        shown, target = found.groups()
        file, hash, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:") or not file:
            return found[0]
        linked = (origin.parent / file).resolve()
        if not linked.exists():
            raise SystemExit(f"{origin.relative_to(PROJECT)}: {target} leads nowhere")
        up = "../" * home.count("/")
        return f"{shown}({up}{self._home_of(linked)}{hash}{anchor})"

    def _home_of(self, file: Path) -> str:
        if file not in self._homes:
            picture = file.suffix in (".svg", ".png")
            self._homes[file] = str(file.relative_to(DOCS)) if picture else f"files/{file.relative_to(PROJECT)}.md"
            self._todo.append(file)
        return self._homes[file]

    @property
    def homes(self) -> list[str]:
        """Addresses of the pages, without the files that they link to."""
        return [home for home in self._homes.values() if home.endswith(".md") and not home.startswith("files/")]


def page_of(origin: Path) -> str:
    """The Markdown of a page: the cells of a notebook, the text of another file, those of the files of a folder."""
    if origin.is_dir():
        files = sorted(path for path in origin.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        shown = [f"## {file.relative_to(origin)}\n\n{_fenced(file)}" for file in files]
        return "\n".join([f"# {origin.relative_to(PROJECT)}\n", *shown])
    if origin.suffix == ".ipynb":
        return "\n\n".join(_cells(json.loads(origin.read_text(encoding="utf-8")))) + "\n"
    if origin.suffix != ".md":
        return f"# {origin.relative_to(PROJECT)}\n\n{_fenced(origin)}"
    return spaced(origin.read_text(encoding="utf-8"))


def _cells(notebook: Mapping[str, list[Mapping[str, object]]]) -> Iterator[str]:
    for cell in notebook["cells"]:
        source = "".join(cell["source"])  # type: ignore[arg-type]
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"


def _fenced(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def spaced(text: str) -> str:
    """Markdown in which a list stands after a blank line, as Zensical's reader wants it and others do not mind.

    Example:
      >>> spaced("Two:\\n- one\\n- two\\n")
      'Two:\\n\\n- one\\n- two\\n'
    """
    lines, spaced, code = text.split("\n"), list[str](), False
    for line in lines:
        before = spaced[-1] if spaced else ""
        item = re.match(r"(-|\d+\.) ", line)
        if item and before and not code and not re.match(r"(-|\d+\.) | ", before):
            spaced.append("")
        code ^= line.startswith("```")
        spaced.append(line)
    return "\n".join(spaced)


def write_api(pages: Pages) -> list[tuple[str, str]]:
    """Writes the pages of the API; returns their titles and homes."""
    names, written = public_names(), list[tuple[str, str]]()
    for title, rooms in GROUPS.items():
        own = {name: module for name, module in names.items() if module.split(".")[1] in rooms}
        text = [f"# {title}\n", "Names of the package: `from cutlayer import NAME`.\n"]
        text += [f"::: {module}.{name}\n" for name, module in own.items()]
        home = f"api/{title.lower().replace(' ', '-')}.md"
        pages.put(home, "\n".join(text))
        written.append((title, home))
        for name in own:
            del names[name]
    if names:
        raise SystemExit(f"public names in no group of docs/build_site.py: {', '.join(names)}")
    for module in ROOMS:
        home = f"api/{module}.md"
        pages.put(
            home, f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 2\n"
        )
        written.append((module, home))
    return written


def navigation(homes: list[str], api: list[tuple[str, str]]) -> str:
    """The navigation as TOML: every page has a place."""
    named = {home for group in NAVIGATION.values() for home in group} | {"index.md"}
    if missing := named - set(homes):
        raise SystemExit(f"pages in the navigation that are not there: {', '.join(sorted(missing))}")
    decisions = sorted(home for home in homes if home.startswith("decisions/0"))
    rest = [home for home in homes if home not in named and not home.startswith("decisions/")]
    groups: list[tuple[str, list[str]]] = [("Home", ["index.md"])]
    for title, own in NAVIGATION.items():
        groups.append((title, own + rest if title == "Use" else own))
    lines = [f"  {{ {json.dumps(title)} = [{', '.join(map(json.dumps, own))}] }}," for title, own in groups[1:]]
    listed = ", ".join(map(json.dumps, ["decisions/README.md", *decisions]))
    shown = ", ".join(f"{{ {json.dumps(title)} = {json.dumps(home)} }}" for title, home in api)
    return "\n".join(
        [
            "[",
            '  { "Home" = "index.md" },',
            *lines,
            f'  {{ "Decisions" = [{listed}] }},',
            f'  {{ "API" = [{shown}] }},',
            "]",
        ]
    )


def undocumented() -> list[str]:
    """The public names, and what is public in the public rooms, that have no docstring."""
    import griffe

    loaded = griffe.GriffeLoader(search_paths=[SOURCE.parent])
    package = loaded.load("cutlayer", try_relative_path=False)
    found = [f"{module}.{name}" for name, module in public_names().items()]
    for module in ROOMS:
        members = package[module.removeprefix("cutlayer.")].members.values()
        found += [
            one.path for one in members if not one.is_alias and (one.is_function or one.is_class) and one.is_public
        ]
    return [path for path in found if not package[path.removeprefix("cutlayer.")].has_docstring]


class _Asked(HTMLParser):
    """The addresses at other hosts that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        url = told.get("src") or (told.get("href") if tag == "link" and told.get("rel") != "canonical" else None)
        if url and re.match(r"(https?:)?//", url):
            self.found.append(url)


def asked_of_others(site: Path) -> dict[str, list[str]]:
    """Addresses at other hosts that a page or a stylesheet makes a browser fetch, by its name."""
    asked: dict[str, list[str]] = {}
    for page in site.rglob("*.html"):
        reader = _Asked()
        reader.feed(page.read_text(encoding="utf-8"))
        asked[str(page.relative_to(site))] = reader.found
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"""url\(["']?((?:https?:)?//[^)"']+)""", sheet.read_text(encoding="utf-8"))
        asked[str(sheet.relative_to(site))] = urls
    return {name: urls for name, urls in asked.items() if urls}


def build(site: Path) -> None:
    """Builds the site and holds it to the rules."""
    site = site.resolve()
    if missing := undocumented():
        raise SystemExit(f"public names without a docstring: {', '.join(missing)}")
    work = site.parent
    pages = Pages(work / "pages")
    pages.write()
    pages.put("site.css", CSS)
    api = write_api(pages)
    config = CONFIG.format(
        nav=navigation(pages.homes, api), source=json.dumps(str(SOURCE.parent)), examples=json.dumps(EXAMPLES)
    )
    (work / "zensical.toml").write_text(config.replace('"site"', json.dumps(site.name)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(work / "zensical.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).partition("Traceback")[0]
    if done.returncode or "griffe: " in said:
        raise SystemExit(said)
    if asked := asked_of_others(site):
        raise SystemExit(f"pages that ask another host for something: {asked}")
    print(f"{len(list(site.rglob('*.html')))} pages in {site}: open index.html")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "build" / "site")
