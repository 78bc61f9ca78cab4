"""What `make docs` builds: every guide is in its menu, every stage on the page of the API."""

import importlib
import inspect
import re
from pathlib import Path

import yaml

import pocketlm.stages
from pocketlm.estimate.stages import COSTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMED = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.M)


def pages(entry: object) -> list[str]:
    """The files that a part of the menu leads to."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    assert not isinstance(parts, str)
    return [page for part in parts for page in pages(part)]  # type: ignore[union-attr]


def test_the_menu_leads_to_every_guide_once_and_to_nothing_else() -> None:
    menu = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))
    assert sorted(menu) == there


def test_what_the_page_of_the_api_names_is_there_and_says_what_it_is() -> None:
    for name in NAMED:
        if name.count(".") == 2 and name.islower():
            assert inspect.getdoc(importlib.import_module(name)), name
            continue
        module, _, member = name.rpartition(".")
        said = inspect.getdoc(getattr(importlib.import_module(module), member))
        # a dataclass without a docstring is given its signature as one
        assert said and not said.startswith(f"{member}("), name


def test_every_stage_that_a_plan_knows_is_on_the_page_of_the_api() -> None:
    checks = {name for name in COSTS if name.startswith("check_")}
    stages = {
        name.rpartition(".")[2] for name in NAMED if name.startswith(pocketlm.stages.__name__)
    }
    assert COSTS.keys() - checks <= stages
