"""What pip installs: imports are declared, the core needs no extra, a missing extra is named."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer

from pocketlm.runner.errors import extra_with, plain_errors

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = sorted((ROOT / "pocketlm").rglob("*.py"))
# what one needs to talk to a file, open a checkpoint, export it, and train on ready shards
CORE = ("commands.chat", "commands.bench", "commands.import_", "stages.pretrain", "stages.finetune")
CORE_STAGES = ("stages.bench", "stages.importing", "stages.quantize")


def package(requirement: str) -> str:
    """The normal name of the package that a requirement names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ;]", requirement)[0]).lower()


def imports(path: Path) -> set[str]:
    """Top modules that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules.add(node.module.split(".")[0])
    return modules


def test_every_package_that_is_imported_is_declared() -> None:
    listed = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    declared = {package(requirement) for requirement in listed}
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in FILES
        for module in imports(path) - set(sys.stdlib_module_names) - {"pocketlm"}
        if not {package(name) for name in distributions.get(module, [module])} & declared
    }
    assert undeclared == {
        # what somebody may have: without it one sentence says so
        "pocketlm/eval/instructions.py: langdetect",
        "pocketlm/train/head_kernels.py: cut_cross_entropy",
        "pocketlm/train/head_kernels.py: liger_kernel",
    }


def test_every_declared_package_is_of_use() -> None:
    modules = set().union(*map(imports, FILES))
    distributions = packages_distributions()
    used = {package(name) for module in modules for name in distributions.get(module, ())}
    # torch and transformers import these themselves
    used |= {"protobuf", "sentencepiece", "tensorboard"}
    wanted = {
        package(requirement)
        for group in ("curate", "eval", "llamacpp", "executorch", "serve")
        for requirement in EXTRAS[group]
    }
    wanted |= {package(requirement) for requirement in PROJECT["dependencies"]}
    assert not wanted - used


def test_talking_exporting_and_training_on_shards_need_no_extra() -> None:
    absent = {
        module
        for module, names in packages_distributions().items()
        if {package(name) for name in names}
        & {package(one) for group in ("curate", "eval") for one in EXTRAS[group]}
        - {"regex"}  # transformers needs it as well
    }
    assert {"datatrove", "datasets", "math_verify", "reasoning_gym"} <= absent
    rooms = ", ".join(f"pocketlm.{room}" for room in (*CORE, *CORE_STAGES))
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(absent)})); import {rooms}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_with_the_extra_that_installs_it(capsys, monkeypatch) -> None:
    with pytest.raises(typer.Exit) as stop, plain_errors():
        raise ModuleNotFoundError("No module named 'datatrove'", name="datatrove.data")
    assert stop.value.exit_code == 2
    assert "this needs the package datatrove.data: pip install 'pocketlm[curate]'" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    assert extra_with("xllamacpp") == "llamacpp" and extra_with("torch") is None
    listed = [f'{one}; extra == "{name}"' for name, extra in EXTRAS.items() for one in extra]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: listed)
    assert extra_with("lm_eval.tasks") == "lm-eval"  # whose name has a hyphen


def test_the_constraints_hold_a_version_of_every_declared_package() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {package(line) for line in lines if not line.startswith("#")}
    listed = list(PROJECT["dependencies"])
    for name in ("curate", "eval", "llamacpp", "executorch", "serve", "dev"):
        listed += EXTRAS[name]
    assert not {package(requirement) for requirement in listed} - pinned
