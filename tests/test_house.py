"""The rules of the house, as tests: who may import whom, what has a test, what is written down, what must not be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from cutlayer.methods.table import NO_METHODS, TABLE

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "src" / "cutlayer"
TESTS = PROJECT / "tests"


def layers() -> list[list[str]]:
    """The rooms of docs/architecture.txt, highest first. Imports point downwards, never to a room of the same row."""
    rooms = (PROJECT / "docs" / "architecture.txt").read_text().partition("\nrooms\n")[2]
    return [["__main__"], *(line.strip().split(", ") for line in rooms.splitlines())]


# A room is a folder or a module at the top of the package.
RANK = {room: rank for rank, rooms in enumerate(layers()) for room in rooms}

# These know nothing of the machines that the run is made of.
KNOWS_ONLY_NOUNS = {"report", "data", "model", "wire"}
NOUNS = {"types", "state", "files", "reading", "errors", "shown"}

# Modules whose test is not the file of the same path, and where they are tested instead.
TESTED_IN = {
    "__init__.py": "test_init.py",
    "api/join.py": "api/test_serve.py",
    "comparing/carried_out.py": "cli/test_compare.py",
    "run/loop.py": "test_every_method.py",  # whole runs
    "comparing/one_run.py": "cli/test_compare.py",  # runs of a comparison
    "comparing/reports.py": "cli/test_compare.py",  # the files that it writes
    "data/words.py": "data/test_reviews.py",
    "model/counting.py": "model/test_cost.py",
    "report/stage.py": "report/test_progress.py",
    "report/trackers/child.py": "report/trackers/test_reports.py",  # a process that reports.py starts
    "report/trackers/tracker.py": "report/trackers/test_reports.py",  # an interface
    "run/desk.py": "run/test_served.py",
    "joining.py": "run/test_served.py",  # a server and its devices, over loopback
    "settings.py": "run/test_inputs.py",
    "run/up.py": "cli/test_up.py",
    "cli/resumed.py": "cli/test_train.py",
    "device/talks/held_near.py": "rounds/test_held_near.py",
    "device/dialled.py": "gate/test_span_desk.py",  # both ends of a connection
    "device/spans.py": "run/test_spans.py",  # an interface
    "device/talks/swarm.py": "rounds/test_swarm.py",  # both ends, held to each other
    "device/talks/seeds.py": "rounds/test_seeds.py",  # both ends, held to each other
    "device/talks/thinned.py": "rounds/test_thinned.py",
    "device/talks/weighing.py": "rounds/test_weighing.py",
    "device/own_link.py": "run/test_served.py",
    "flower/client_app.py": "flower/test_server_app.py",
    "gate/door.py": "run/test_served.py",
    "gate/reception.py": "run/test_served.py",
    "testing/playground.py": "test_every_method.py",
    "testing/tiny.py": "model/test_parity.py",
    "transport/carrier.py": "transport/test_session.py",  # an interface
    "transport/handshake.py": "run/test_served.py",
    "model/card.py": "model/test_export.py",
    "api/paged.py": "api/test_simulate.py",
    "run/exported.py": "cli/test_export.py",
    "run/out.py": "cli/test_at_once.py",
    "run/trained.py": "cli/test_export.py",
    "run/run.py": "run/test_simulated.py",  # what whole runs have in common
    "types.py": "policies/test_plan.py",  # nouns
    "rounds/round.py": "rounds/test_split.py",  # an interface
    "server/sites.py": "rounds/test_sited.py",  # an interface, and what passes through it
    "server/owners.py": "server/test_server.py",  # of whole steps
    "server/steps/weigh.py": "rounds/test_weighing.py",  # both ends, held to each other
    "server/steps/step.py": "server/steps/test_one_at_a_time.py",  # an interface
    "wire/link.py": "fleet/test_link.py",  # an interface
}


def modules() -> list[Path]:
    """Every source file, as a path inside the package."""
    return sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports_of(module: Path) -> Iterator[str]:
    """The names of our modules that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "cutlayer")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            if (node.module or "").split(".")[0] == "cutlayer":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(module: Path) -> set[str]:
    """The other rooms that a file imports. The package itself (`__version__`) is no room."""
    names = {name.split(".")[1] for name in imports_of(module) if "." in name}
    return (names & RANK.keys()) - {room_of(module)}


def tracked_files() -> list[Path]:
    """Files that git would hand to others: tracked files, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for line in listed.splitlines() if (path := PROJECT / line).is_file()]


# ------------------------------------------------------------------ imports

# What a weak machine has no use for.
SERVER_SIDE = {"server", "gate", "rounds", "methods", "run", "report", "testing"}


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room_of(module) for module in modules()} - {"__init__"} == RANK.keys()


@pytest.mark.parametrize("module", [m for m in modules() if str(m) != "__init__.py"], ids=str)
def test_imports_point_one_way(module: Path) -> None:
    room = room_of(module)
    upwards = {other for other in rooms_imported(module) if RANK[other] <= RANK[room]}
    assert not upwards, f"{module} imports {sorted(upwards)}, which are not below {room}"
    if room in KNOWS_ONLY_NOUNS:
        assert rooms_imported(module) <= NOUNS


def test_the_device_side_never_imports_the_server_side() -> None:
    todo, seen = [m for m in modules() if room_of(m) in ("device", "joining")], set()
    while todo:
        module = todo.pop()
        seen.add(module)
        assert room_of(module) not in SERVER_SIDE, f"the device side reaches {module}"
        for name in imports_of(module):
            if name.count(".") < 2:
                continue  # of the package itself: its version
            for path in (
                Path(*name.split(".")[1:]).with_suffix(".py"),
                Path(*name.split(".")[1:-1]).with_suffix(".py"),
            ):
                if (SOURCE / path).is_file() and path not in seen:
                    todo.append(path)
    assert len(seen) > 5, "the walk found the modules that the device side uses"


def test_a_device_process_holds_no_server_module() -> None:
    code = "import sys, cutlayer.joining; print(*(m for m in sys.modules if m.startswith('cutlayer')), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in done.stdout.split() if "." in name}
    assert "device" in rooms
    assert rooms.isdisjoint(SERVER_SIDE)


# ------------------------------------------------------------------ tests and docstrings


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_has_its_test(module: Path) -> None:
    elsewhere = TESTED_IN.get(str(module))
    law_abiding = str(module.parent) == "methods" and module.stem in TABLE  # test_every_method.py runs on each row
    same_path = TESTS / module.parent / f"test_{module.name}"
    assert not (elsewhere and same_path.exists()), f"{module} has a test of its own: strike it from TESTED_IN"
    if elsewhere:
        assert (TESTS / elsewhere).is_file()
    elif module.name != "__init__.py" and not law_abiding:
        assert same_path.exists(), f"no {same_path.relative_to(PROJECT)}: write it, or name its test in TESTED_IN"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_public_name_has_a_docstring(module: Path) -> None:
    tree = ast.parse((SOURCE / module).read_text())
    assert ast.get_docstring(tree), f"{module} does not say what it is for"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


NO_SUBJECT = re.compile(r"(?:What|Who|Whose|Whom|Whoever|Whatever|Of)\b")
"""Words with which no docstring begins, not even a test's, which may be a sentence."""
NO_NOUN = re.compile(
    rf"{NO_SUBJECT.pattern}|(?:Which|That|How|Why|Where|When|If|By|As|For|In|So|From|To|At|On|With|After|Before|Between"
    r"|Within|While)\b"
)
"""The same of all others: they begin with a noun or a verb."""


def docstrings_of(path: Path) -> Iterator[str]:
    """The docstrings of a file, those under constants and attributes too."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, one in pairwise([None, *body] if documented else body):
            text = one.value.value if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) else None
            if isinstance(text, str) and (before is None or isinstance(before, ast.Assign | ast.AnnAssign)):
                yield text.strip()


@pytest.mark.parametrize("folder", ["src", "benchmarks", "examples", "docs", "tests"])
def test_docstrings_begin_with_a_noun_or_a_verb(folder: str) -> None:
    wrong, seen = NO_SUBJECT if folder == "tests" else NO_NOUN, 0
    badly = list[str]()
    for path in sorted((PROJECT / folder).rglob("*.py")):
        for text in docstrings_of(path):
            seen += 1
            badly += [f"{path.relative_to(PROJECT)}: {text.splitlines()[0]}"] if wrong.match(text) else []
    assert seen
    assert not badly, "\n".join(badly)


# ------------------------------------------------------------------ what is written down

MACHINE_PATH = re.compile(r"(?<![\w.~}<-])/(?:home|root|work|workspace|tmp|opt|Users|mnt|srv)/\w")
INDEX_ADDRESS = re.compile(
    r"(?:index[-_]url|find[-_]links|registry)\W+(?:https?|file):|/simple/?(?:\s|$)", re.IGNORECASE
)


def test_no_machine_path_and_no_index_address_is_written_down() -> None:
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            for pattern in (MACHINE_PATH, INDEX_ADDRESS):
                found = pattern.search(line)
                assert not found, f"{path.relative_to(PROJECT)}:{number} says {found and found[0]!r}"


def test_no_merge_was_left_half_done() -> None:
    for path in tracked_files():
        marks = re.findall(rb"^(?:<{7}|>{7}) .*$", path.read_bytes(), re.MULTILINE)
        assert not marks, f"{path.relative_to(PROJECT)} says {marks[0]!r}"


LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_between_pages_resolve(page: Path) -> None:
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors_of(linked), f"{target}: no such heading"


def anchors_of(page: Path) -> set[str]:
    """The anchors that a Markdown viewer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_decision_is_in_the_index() -> None:
    folder = PROJECT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("0*.md"))
    assert sorted(LINK.findall(index)) == pages
    numbers = [page[:4] for page in pages]
    assert numbers == [f"{number:04}" for number in range(1, len(pages) + 1)]


@pytest.mark.parametrize("name", ["architecture", "protocol"])
def test_the_picture_is_what_its_script_draws(name: str) -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "docs" / f"{name}.py", "--print"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (PROJECT / "docs" / f"{name}.svg").read_text(), f"run python docs/{name}.py"


def test_the_page_of_methods_is_what_its_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "docs" / "methods.py", "--print"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (PROJECT / "docs" / "methods.md").read_text(), "run python docs/methods.py"


def test_the_readme_lists_the_method_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", (PROJECT / "README.md").read_text(), re.MULTILINE)
    expected = [(name, row.summary, row.paper, row.evidence) for name, row in TABLE.items()]
    assert rows == expected, "run python docs/methods.py"


def test_every_make_target_says_what_it_does() -> None:
    text = (PROJECT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert re.search(rf"^{target}:.*## \w", text, re.MULTILINE), f"make {target} has no help"


def test_the_constraints_hold_every_dependency() -> None:
    import tomllib

    locked = {re.split(r"[=<>]", line)[0] for line in (PROJECT / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[=<>\[ ]", line)[0] for line in needed}
    assert {normal(name) for name in names} <= {normal(name) for name in locked}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------ what runs

HOLD_NO_CODE = {"LoraConfig.from_pretrained", "PeftModel.from_pretrained", "type(skeleton).from_pretrained"}
"""Loaders of classes that are there already: none looks for another, and two have no word by which to refuse one."""


@pytest.mark.parametrize("module", modules(), ids=str)
def test_no_code_that_comes_with_a_model_is_run(module: Path) -> None:
    """Every loader that could run it is told not to, whatever its default may become."""
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("from_pretrained", "from_config") or ast.unparse(node.func) in HOLD_NO_CODE:
            continue
        said = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert said.get("trust_remote_code") == "False", f"{module}:{node.lineno} does not say trust_remote_code=False"


# ------------------------------------------------------------------ what knows no method, and who keeps what

GENERIC = (
    "gate/guard.py",
    "gate/forms.py",
    "gate/guarded.py",
    "methods/contradictions.py",
    "model/cost.py",
    "model/counting.py",
    "run/recommended.py",
    "run/rehearsed.py",
    "server/checkpoint.py",
    "server/share.py",
    "state.py",
    "sealed.py",
)
"""Modules that every shape and every method goes through, and none of them may change."""
KEPT_APART = {
    "rounds/round.py",
    "rounds/judging.py",
    "rounds/patience.py",
    "rounds/turn.py",
    "methods/method.py",
    "methods/source.py",
}
"""In the rooms of shapes and methods, what is of no shape and no method."""


@cache
def shapes() -> set[str]:
    """By the files of their two ends."""
    ends = {path.stem for path in (SOURCE / "device" / "talks").glob("*.py")}
    rounds = {str(path.relative_to(SOURCE)) for path in (SOURCE / "rounds").glob("*.py")} - KEPT_APART
    return (ends | {Path(path).stem for path in rounds}) - {"__init__"}


@cache
def clauses() -> set[str]:
    """The classes of the package that are a clause."""
    trees = [ast.parse((SOURCE / module).read_text()) for module in modules()]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(isinstance(b, ast.Name) and b.id == "Clause" for b in node.bases)}


def words_of(tree: ast.Module) -> Iterator[str]:
    """The texts and names in a file's code: no docstring, no comment."""
    told = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            told.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.name


def test_shapes_clauses_and_methods_are_found() -> None:
    assert {"split", "stream", "relay", "local", "pruned", "hybrid"} <= shapes()
    assert {"Prune", "Repeat", "SelfPrune", "Trains", "Directions", "Queries"} <= clauses()


@pytest.mark.parametrize("module", GENERIC)
def test_what_is_for_all_methods_knows_none(module: str) -> None:
    """It imports no method and no end of a shape, and no word of its code is the name of a method, shape or clause."""
    names = set(imports_of(Path(module)))
    rooms = ("cutlayer.methods.", "cutlayer.device.talks")
    ends = {name for name in names if name.startswith(rooms) and name.split(".")[2] not in NO_METHODS}
    ends |= {name for name in names if name.startswith("cutlayer.rounds.") and name.split(".")[2] in shapes()}
    assert not ends, f"{module} imports {sorted(ends)}"
    known = shapes() | clauses() | set(TABLE)
    tree = ast.parse((SOURCE / module).read_text())
    assert not known.intersection(words_of(tree)), f"{module} knows {sorted(known.intersection(words_of(tree)))}"


def attributes_of(node: ast.AST) -> set[str]:
    """The names that classes in it define: methods, fields, and what they assign to themselves."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef):
            found |= {n.name for n in inner.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
            found |= {
                n.target.id for n in inner.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            }
            found |= {
                t.id for n in inner.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
            }
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and is_oneself(inner.value) and isinstance(inner.ctx, ast.Store):
            found.add(inner.attr)
    return found


def is_oneself(node: ast.expr) -> bool:
    """Whether this is `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def keepers() -> Iterator[ast.ClassDef]:
    """The classes that keep something that outlives a round."""
    for module in modules():
        for node in ast.walk(ast.parse((SOURCE / module).read_text())):
            if isinstance(node, ast.ClassDef):
                methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                if {"state", "load"} <= methods and node.name not in ("Keeper", "Stateless"):
                    yield node


OF_OTHERS = {
    *("_parameters", "_buffers", "_init_weights", "_model_mapping", "_is_view", "_cdata"),  # torch, transformers
    *("_when", "_scheduled"),  # asyncio's timers
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_log_softmax_backward_data",
    "_unsafe_view",
    "_overloadpacket",
    "_replace",  # of a named tuple
    "_private",  # ray
    "_exit",  # os
}
"""Names with an underscore that other packages have no public ones for."""


@pytest.mark.parametrize("module", modules(), ids=str)
def test_nobody_reaches_into_anothers_private_state(module: Path) -> None:
    """A name with an underscore is used on oneself, or on an object whose class is in the same file."""
    tree = ast.parse((SOURCE / module).read_text())
    own = attributes_of(tree) | OF_OTHERS
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and not is_oneself(node.value)
    }
    assert not used - own, f"{module} uses {sorted(used - own)} of other modules' objects"


HANDED = {
    ("rounds/relay.py", "adapter"): "each device's turn begins from where the one before left off",
    ("report/progress.py", "of"): "of a stage of work; a keeper has an attribute of the same name",
    (
        "model/counting.py",
        "device",
    ): "of a part, which is somewhere else while it is counted; the name of a keeper's too",
    ("run/served.py", "forecast"): "of the devices that have come, which nobody knows before",
    ("run/workers/worker.py", "forecast"): "the same, in a worker",
    ("run/site_served.py", "forecast"): "the same, at a site",
    ("run/site_served.py", "adapter"): "of the site, with which its devices begin a round",
    ("run/workers/switchboard.py", "here"): "of a member; a keeper has an attribute of the same name",
    ("server/server.py", "shared"): "the adapters are the server's, in whose state theirs is a branch",
    (
        "device/commit.py",
        "before_judging",
    ): "whoever keeps a device's commit points knows what its base has had folded in",
    ("device/commit.py", "before_round"): "whoever keeps a device's commit points goes back to them",
}
"""The only public attributes of keepers that others set, and why."""


def test_only_its_keeper_writes_what_outlives_a_round() -> None:
    """Attributes of a class with `state` and `load` are set by it alone; but for a few, and these in one place."""
    kept = {name for keeper in keepers() for name in attributes_of(keeper) if not name.startswith("_")}
    assert {"shared", "trainable", "sums"} <= kept, "the walk found the keepers"
    written = set()
    for module in modules():
        if room_of(module) == "testing":
            continue
        tree = ast.parse((SOURCE / module).read_text())
        own = {name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for name in attributes_of(node)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)):
                continue
            if node.attr in kept and not is_oneself(node.value) and node.attr not in own:
                written.add((module.as_posix(), node.attr))
    assert written == HANDED.keys()
