"""The documentation site: what `docs/build_site.py` writes for it, and that it builds."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cutlayer

PROJECT = Path(__file__).parents[1]
SCRIPT = PROJECT / "docs" / "build_site.py"


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_a_page_leads_to_what_is_written_beside_it(site: ModuleType, tmp_path: Path) -> None:
    pages = site.Pages(tmp_path / "pages")
    pages.write()
    written = sorted((tmp_path / "pages").rglob("*.md"))
    assert {"index.md", "deploy.md", "SECURITY.md", "first-run.md"} <= {page.name for page in written}
    for page in written:
        for shown, target in site.LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            file = target.partition("#")[0]
            if "://" not in target and file and "files" not in page.relative_to(tmp_path / "pages").parts[:1]:
                assert (page.parent / file).is_file(), f"{page.name}: {shown}({target})"
    (example,) = (tmp_path / "pages" / "files").rglob("clinic.yaml.md")
    assert "```yaml" in example.read_text()


def test_a_link_that_leads_nowhere_is_an_error(
    site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "page_of", lambda origin: "[gone](gone.md)")
    with pytest.raises(SystemExit, match=r"gone\.md leads nowhere"):
        site.Pages(tmp_path / "pages").write()


def test_every_page_has_its_place_in_the_navigation(site: ModuleType, tmp_path: Path) -> None:
    homes = site.Pages(tmp_path / "pages").homes
    shown = site.navigation(homes, [("Policies", "api/policies.md")])
    assert set(re.findall(r'"([^"]+\.md)"', shown)) == {*homes, "api/policies.md"}
    with pytest.raises(SystemExit, match=r"not there: deploy\.md"):
        site.navigation([home for home in homes if home != "deploy.md"], [])
    assert '"new.md"' in site.navigation([*homes, "new.md"], []), "a page that nobody placed"


def test_the_api_has_every_public_name_and_what_a_package_of_a_method_imports(site: ModuleType, tmp_path: Path) -> None:
    pages = site.Pages(tmp_path / "pages")
    written = site.write_api(pages)
    text = "\n".join((tmp_path / "pages" / home).read_text() for _, home in written)
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    names = site.public_names()
    assert set(names) == set(cutlayer.__all__) - {"__version__"}
    assert {f"{module}.{name}" for name, module in names.items()} <= shown
    for file in (PROJECT / "examples" / "my-method" / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cutlayer."):
                assert node.module in shown, f"{file.name} imports {node.module}"


def test_what_a_page_asks_another_host_for_is_found(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fine.html").write_text(
        '<a href="https://a.b">to</a><img src="x.png"><link rel="canonical" href="//c">'
    )
    (tmp_path / "asks.html").write_text('<script src="https://a.b/c.js"></script><link rel="stylesheet" href="//d.e">')
    (tmp_path / "asks.css").write_text("@font-face { src: url(https://f.g/h.woff) }")
    assert site.asked_of_others(tmp_path) == {
        "asks.html": ["https://a.b/c.js", "//d.e"],
        "asks.css": ["https://f.g/h.woff"],
    }


def test_a_list_stands_after_a_blank_line_but_not_in_code(site: ModuleType) -> None:
    assert site.spaced("a:\n- b\n- c\n  d\n- e") == "a:\n\n- b\n- c\n  d\n- e"
    assert site.spaced("```\na:\n- b\n```") == "```\na:\n- b\n```"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="cutlayer[docs] is not installed")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "tutorial-fleet.html").is_file()
