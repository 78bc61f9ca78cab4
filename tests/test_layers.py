"""The floors of the house: imports go down only. See docs/pipeline.md for the picture.

recipes -> stages -> tools (corpus data train eval export report serve) -> inference -> model ->
transformer.py -> torch
problems and sandbox, beside model: what corpus and eval share, and where code of a model's is run.
"""

import ast
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = {"corpus", "data", "train", "eval", "export", "report", "serve"}
VAGUE = {"utils", "util", "common", "base", "helpers", "helper", "misc"}
WRAPPERS = {  # optional package -> the files that may import it
    # its runtime answers, and its compiler writes: two floors, and who chats needs the first alone
    "executorch": {"pocketlm/inference/executorch.py", "pocketlm/export/pte.py"},
    "xllamacpp": {"pocketlm/export/llamacpp_server.py", "pocketlm/serve/llama_process.py"},
    "lm_eval": {"pocketlm/eval/lm_eval_model.py"},
    "liger_kernel": {"pocketlm/train/head_kernels.py"},
    "cut_cross_entropy": {"pocketlm/train/head_kernels.py"},
}

PUBLIC = Path("pocketlm/__init__.py")
FILES = sorted(
    path.relative_to(ROOT)
    for part in ("pocketlm", "recipes")
    for path in (ROOT / part).rglob("*.py")
)


def imported(path: Path, source: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import in a file, wherever it stands; a relative import is spelled
    out.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def broken_rules(path: Path, source: str) -> list[str]:
    """What a file of this place may not import but does; one line each."""
    return [
        f"{path}: {wrong}"
        for module, name in imported(path, source)
        if (wrong := wrong_import(path, module, name))
    ]


def wrong_import(path: Path, module: str, name: str | None) -> str | None:
    """Why this file may not import this, or None where it may."""
    top, *rest = module.split(".")
    if path.parts[0] == "recipes":
        return wrong_in_recipe(module, name)
    allowed = network_imports(path)
    of_network = any(module == place or module.startswith(f"{place}.") for place in allowed)
    if allowed and not of_network and top not in sys.stdlib_module_names:
        return f"{path.name} imports only {' and '.join(allowed)}, not {module}"
    if top == "recipes":
        return "the package never imports a recipe"
    if top != "pocketlm":
        return None
    room = rest[0] if rest else (name or "")
    here = path.parts[1].removesuffix(".py")
    if here in ("cli", "commands") or path == PUBLIC:
        return None
    # above the tools whose costs it knows, beside the stages, which come to it as calls
    if here == "estimate":
        allowed = TOOLS | {"runner", "model", "estimate"}
        return None if room in allowed else f"estimate imports {module}"
    if here == "resume_proof":  # it starts commands that come to it as arguments
        return (
            None
            if room in {"runner", "model", "resume_proof"}
            else f"resume_proof imports {module}"
        )
    if here == "rehearsal":  # it knows stages and sources by the names of their fields
        return None if room in {"runner", "model", "rehearsal"} else f"rehearsal imports {module}"
    if here == "runner":
        return (
            None
            if room in {"runner", "model"}
            else f"runner imports {module}: stages come in as arguments"
        )
    if here == "stages":
        own = ".".join(path.with_suffix("").parts)
        # what several stages share is no stage: the middle of training, and proxies
        shared = ("pocketlm.stages.training", "pocketlm.stages.proxies")
        if room == "stages" and module not in (own, *shared):
            return f"a stage imports another stage: {module}"
        return (
            None
            if room in TOOLS | {"inference", "model", "problems", "sandbox", "stages"}
            else f"a stage imports {module}, above it"
        )
    if here in ("problems", "sandbox"):
        return None if room == here else f"{here} imports {module}"
    allowed = {"model", here} | ({"inference", "problems", "sandbox"} if here in TOOLS else set())
    return None if room in allowed else f"{here} imports {module}"


def network_imports(path: Path) -> tuple[str, ...]:
    """All that a file of the network itself may import beside the standard library; () for any
    other.
    """
    kernels = ("torch", "pocketlm.model.kernels")
    if path.parts[:3] == ("pocketlm", "model", "kernels"):
        return kernels
    alone: dict[tuple[str, ...], tuple[str, ...]] = {
        ("pocketlm", "model", "rope.py"): ("torch",),
        ("pocketlm", "model", "attention.py"): kernels,
        ("pocketlm", "model", "model_config.py"): ("pocketlm.model.rope",),
        ("pocketlm", "model", "transformer.py"): (
            *kernels,
            "pocketlm.model.attention",
            "pocketlm.model.layers",
            "pocketlm.model.model_config",
            "pocketlm.model.rope",
        ),
        ("pocketlm", "model", "layers.py"): kernels,
    }
    return alone.get(path.parts, ())


def wrong_in_recipe(module: str, name: str | None) -> str | None:
    """A recipe imports stages, config dataclasses, the published shapes and the standard
    library.
    """
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if module.startswith("pocketlm.stages.") or module == "pocketlm.model.presets":
        return None
    if top == "pocketlm" and is_dataclass(module, name):
        return None
    what = f"{module}.{name}" if name else module
    return f"a recipe imports {what}, which is neither a stage nor a config dataclass"


def is_dataclass(module: str, name: str | None) -> bool:
    """Whether the module has a dataclass of this name, its own or one that it passes on."""
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if name is None or not file.is_file():
        return False
    return dataclasses.is_dataclass(getattr(importlib.import_module(module), name, None))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    assert not broken_rules(path, (ROOT / path).read_text())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pocketlm/model/quant.py", "from pocketlm.train.loop import train"),
        ("pocketlm/model/transformer.py", "import numpy"),
        ("pocketlm/model/transformer.py", "from pocketlm.model.files import write_json"),
        ("pocketlm/model/attention.py", "from pocketlm.model.transformer import Transformer"),
        ("pocketlm/model/kernels/sdpa.py", "from pocketlm.model.attention import document_begins"),
        ("pocketlm/train/loop.py", "def late():\n    from pocketlm.data.batches import batches"),
        ("pocketlm/train/loop.py", "from ..data import batches"),
        ("pocketlm/inference/open.py", "from pocketlm.export.gguf import write_gguf"),
        ("pocketlm/model/quant.py", "from pocketlm.inference.runtime import Runtime"),
        ("pocketlm/train/loop.py", "from pocketlm import data"),
        ("pocketlm/train/loop.py", "import pocketlm.stages.pretrain"),
        ("pocketlm/train/loop.py", "from pocketlm.runner.run import Run"),
        ("pocketlm/eval/harness.py", "from pocketlm.corpus.sources import Source"),
        ("pocketlm/problems/families.py", "from pocketlm.model.files import write_json"),
        ("pocketlm/model/quant.py", "from pocketlm.problems.generated import draw"),
        ("pocketlm/sandbox/judge.py", "from pocketlm.model.files import write_json"),
        ("pocketlm/inference/open.py", "from pocketlm.sandbox.sandbox import judge"),
        ("pocketlm/stages/merge.py", "from pocketlm.stages.pretrain import pretrain"),
        ("pocketlm/stages/merge.py", "from . import pretrain"),
        ("pocketlm/stages/merge.py", "from pocketlm.runner.run import Run"),
        ("pocketlm/stages/merge.py", "from recipes.pocket import recipe"),
        ("pocketlm/runner/run.py", "from pocketlm.stages.pretrain import pretrain"),
        ("pocketlm/estimate/stages.py", "from pocketlm.stages.pretrain import pretrain"),
        ("pocketlm/rehearsal/cut.py", "from pocketlm.stages.pretrain import pretrain"),
        ("pocketlm/train/loop.py", "from pocketlm.estimate.work import Work"),
        ("pocketlm/stages/pretrain.py", "from pocketlm.estimate.work import Work"),
        ("recipes/r1.py", "import torch"),
        ("recipes/r1.py", "from pocketlm.model.checkpoint import load_checkpoint"),
        ("recipes/r1.py", "from recipes.pocket import SMALL"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(path: str, source: str) -> None:
    assert len(broken_rules(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "pocketlm/train/loop.py",
            "from . import losses\nfrom pocketlm.model.files import write_json\nimport numpy",
        ),
        ("pocketlm/stages/merge.py", "from pocketlm.train.loop import train"),
        ("pocketlm/eval/latency.py", "from pocketlm.inference.runtime import Runtime"),
        (
            "recipes/r1.py",
            "from pocketlm.stages.pretrain import pretrain\nfrom dataclasses import replace",
        ),
        ("recipes/r1.py", "from pocketlm.model.transformer import ModelConfig"),
    ],
)
def test_an_import_that_goes_down_is_allowed(path: str, source: str) -> None:
    assert not broken_rules(Path(path), source)


def test_packages_export_nothing_from_their_init_files() -> None:
    """But the first one: `from pocketlm import load`."""
    full = [
        path for path in FILES if path.name == "__init__.py" and (ROOT / path).read_text().strip()
    ]
    assert full == [PUBLIC]


def test_every_file_is_named_for_what_is_in_it() -> None:
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    vague = [
        path
        for path in [*FILES, *tests]
        if VAGUE & {part.removesuffix(".py") for part in path.parts}
    ]
    assert not vague


@pytest.mark.parametrize("package", sorted(WRAPPERS))
def test_an_optional_package_is_imported_in_its_wrapper_only(package: str) -> None:
    importing = {
        str(path)
        for path in FILES
        for module, _ in imported(path, (ROOT / path).read_text())
        if module.split(".")[0] == package
    }
    assert importing == WRAPPERS[package]


# Prose and code: docs/log.md is history, and keeps its words.
WIDTH, LONGEST_FILE = 100, 350
PRONOUNS = {"own", "found", "told", "each", "shown", "some", "theirs", "asked"}
PARAPHRASES = {  # what is not written -> the field's words for it
    "so-manieth": "every n-th",
    "worked out": "computed",
    "way back": "backward pass",
    "is told": "is reported, logged or printed",
    "are told": "are reported, logged or printed",
    "made ahead": "prefetched",
    "shared out": "sharded",
    "polite kill": "SIGTERM",
    "looks at whom": "attention mask",
    "hollow": "without weights, on the meta device",
}
GUIDES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if path.name != "log.md"
)


def modules_imported(path: Path) -> set[Path]:
    """Our own files that a file imports when it is imported itself, not inside a function."""
    source = ast.parse((ROOT / path).read_text())
    late = {
        node
        for function in ast.walk(source)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    names: set[str] = set()
    for node in ast.walk(source):
        if node in late:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {file for name in names if (file := Path(*name.split(".")).with_suffix(".py")) in KNOWN}


KNOWN = set(FILES)


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """Groups of two or more files each of which reaches the others by imports."""
    reach: dict[Path, set[Path]] = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            for file in graph[waiting.pop()] - seen:
                seen.add(file)
                waiting.append(file)
        reach[start] = seen
    groups = {frozenset({a, *(b for b in reach[a] if a in reach[b])}) for a in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles({Path("a"): {Path("b")}, Path("b"): {Path("a")}}) == [[Path("a"), Path("b")]]
    assert not circles({path: modules_imported(path) for path in FILES})


def test_no_file_is_longer_than_a_reader_holds() -> None:
    """A recipe's tables of published sources are as long as they are."""
    files = [path for path in FILES if path.parts[0] == "pocketlm"]
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in files}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_line_is_wider_than_a_hundred_columns() -> None:
    """A row of a document's table, or a chat template, cannot be broken; everything else can."""
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    tests.remove(Path("tests/chat_templates.py"))
    benchmarks = [path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*.py")]
    wide = [
        f"{path}:{number}"
        for path in [*FILES, *tests, *benchmarks, *GUIDES, Path("docs/log.md")]
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1)
        if len(line.split("  # type: ignore")[0].split("  # noqa")[0]) > WIDTH
        and not (path.suffix == ".md" and line.lstrip().startswith("|"))
    ]
    assert not wide


def names_bound(source: str) -> Iterator[tuple[str, int]]:
    """(name, line) of every variable and parameter of a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def test_names_are_nouns_and_no_pronouns() -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for path in FILES
        for name, line in names_bound((ROOT / path).read_text())
        if name in PRONOUNS
    ]
    assert not wrong, f"{len(wrong)} names say nothing of what they hold: {wrong[:40]}"


def test_the_field_s_words_are_used() -> None:
    wrong = [
        f"{path}: {phrase!r}; write: {instead}"
        for path in [*FILES, *GUIDES]
        for phrase, instead in PARAPHRASES.items()
        if phrase in " ".join((ROOT / path).read_text().split())
    ]
    assert not wrong
