"""Paths, links and tables of the documentation agree with the repository."""

import ast
import re

import pytest

from tests.docs.pages import PAGES, ROOT, read

FOLDERS = ("emo_jax", "configs", "launch", "tests", "docs", "benchmarks", "typings")


def anchors(text):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_exist(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (folder / path).resolve() if path else ROOT / page
        generated = linked == ROOT / "docs" / "api" / "cli.md"
        assert linked.is_file() or generated, target
        if anchor and not generated:
            assert anchor in anchors(linked.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_code_exist(page):
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./]*)`", read(page)):
        assert (ROOT / path).exists(), path


def test_architecture_names_functions_that_exist():
    named = re.findall(r"`(\w+)` in\s+\[[\w/.]+\]\(([^)]+)\)", read("docs/architecture.md"))
    assert len(named) >= 4
    for name, path in named:
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / "docs" / path).read_text(), re.MULTILINE), name


def test_readme_is_short_and_has_a_moving_picture():
    assert len(read("README.md").splitlines()) <= 130
    picture = ROOT / "docs" / "demo.webp"
    assert "docs/demo.webp" in read("README.md")
    assert b"ANIM" in picture.read_bytes()[:64] and picture.stat().st_size < 1.5e6


def importers():
    """{folder of emo_jax: the other folders that import it}."""
    found = {path.parent.name: set() for path in (ROOT / "emo_jax").glob("*/__init__.py")}
    for path in (ROOT / "emo_jax").glob("*/**/*.py"):
        importer = path.relative_to(ROOT / "emo_jax").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                root, _, rest = name.partition(".")
                folder = rest.split(".")[0]
                if root == "emo_jax" and folder in found and folder != importer:
                    found[folder].add(importer)
    return found


def test_architecture_lists_the_importers_of_each_folder():
    table = read("docs/architecture.md").split("<!-- folders -->")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    listed = {row[0].strip("`"): {name for name in row[2].split(", ") if name} for row in rows}
    assert listed == importers()


def test_architecture_says_why_each_dependency_is_there():
    requirements = (ROOT / "setup.cfg").read_text().split("install_requires =")[1].split("\n\n")[0]
    names = set(re.findall(r"^ +([\w-]+)", requirements, re.MULTILINE))
    table = read("docs/architecture.md").split("## Dependencies")[1]
    listed = {name for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for name in row.split(", ")}
    assert listed - {"Package", "---"} == names
