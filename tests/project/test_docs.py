"""The documentation's tables are those of the code, and its pages are found and whole."""

from __future__ import annotations

import importlib.metadata
import re
import runpy

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mlflow_phi3_onnx
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from tests.support.pages import BLOCK, PAGES, PROGRAMS, ROOT, blocks

GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "script"),
    [("parameters.md", "parameter_tables.py"), ("api.md", "api_reference.py")],
)
def test_generated_pages_are_those_of_the_code(page: str, script: str) -> None:
    made = runpy.run_path(str(ROOT / "scripts" / script))["document"]()
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == made, f"run python scripts/{script}"


def test_the_api_reference_has_every_public_name() -> None:
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    methods = [name for name in dir(mlflow_phi3_onnx.GenAIModel) if not name.startswith("_")]
    names = [name for name in mlflow_phi3_onnx.__all__ if not re.match("_[^_]", name)]
    names += [f"GenAIModel.{name}" for name in methods]
    assert [name for name in names if f"`{name}`" not in written] == []


def test_no_other_page_has_python_that_is_not_run() -> None:
    run = {page for page in PAGES if blocks("python", page.read_text(encoding="utf-8"))}
    # The last one in tests/server/test_gateway.py.
    elsewhere = ("docs/clouds.md", "docs/quantization.md", "docs/spark.md", "docs/gateway.md")
    assert run == {ROOT / page for page in (*PROGRAMS, *elsewhere)}


def test_the_guide_has_every_parameter() -> None:
    honoured = {
        name
        for table in PARAMETERS.values()
        for name, row in table.items()
        if row.status == "honoured"
    }
    assert {
        name for name in honoured if f"`{name}" not in GUIDE and f"{name}=" not in GUIDE
    } == set()


def test_the_gpu_recipe_brings_what_the_package_needs() -> None:
    """All but the CPU build, in the versions of pyproject.toml, or with MLflow."""
    (recipe, *_) = blocks("bash", (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"))
    given = {one.name: one for one in map(Requirement, re.findall('"([^"]+)"', recipe))}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (section,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    needed = {one.name: one for one in map(Requirement, re.findall('"([^"]+)"', section))}
    newest = re.search('"onnxruntime-genai(>=[^;"]+); python_version >=', section)
    assert newest
    assert given["onnxruntime-genai-cuda"].specifier == SpecifierSet(newest[1])
    del needed["onnxruntime-genai"]
    assert {name: given[name].specifier for name in needed.keys() & given.keys()} == {
        name: needed[name].specifier for name in needed.keys() & given.keys()
    }
    assert needed.keys() - given.keys() <= brought_by("mlflow")


def brought_by(name: str) -> set[str]:
    """Return what an installed distribution requires, and what that requires."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for text in importlib.metadata.requires(waiting.pop()) or ():
            one = Requirement(text)
            wanted = one.marker is None or one.marker.evaluate({"extra": ""})
            if wanted and (found := canonicalize_name(one.name)) not in seen:
                seen.add(found)
                waiting.append(found)
    return seen


def anchors(text: str) -> set[str]:
    """Return what links to a page's headings are called, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    broken: list[str] = []
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if re.match("https?:", target):
                continue
            name, _, anchor = target.partition("#")
            other = (page.parent / name).resolve() if name else page
            if not other.exists() or (
                anchor and anchor not in anchors(other.read_text(encoding="utf-8"))
            ):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_page_can_be_found() -> None:
    """From the index, and each decision from their list."""
    for start in (ROOT / "docs" / "index.md", ROOT / "docs" / "decisions" / "README.md"):
        text = start.read_text(encoding="utf-8")
        linked = {(start.parent / name).resolve() for name in re.findall(r"\]\(([^)#]+)", text)}
        assert {page for page in start.parent.glob("*.md") if page != start} <= linked


def test_a_decision_is_one_screen_that_says_what_and_why() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert len(text.splitlines()) <= 40, page.name
        assert all(f"**{part}.**" in text for part in ("Decision", "Why", "What follows"))
