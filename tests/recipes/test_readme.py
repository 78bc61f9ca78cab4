"""What README and docs print can be typed: its commands run, its Python answers, flags exist."""

import itertools
import json
import os
import re
import subprocess
import sys
import urllib.request
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from shapes import small
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.export import ExportConfig, export

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = Path(sys.executable).with_name("pocketlm")
# appended to a command whose sizes are those of a real model, so that it takes seconds here
CUT = {"recipes/specialize.py": "--steps 3 --int4-steps 2 --set files.min_agreement=0.5"}


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a Markdown text in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[str]:
    """Each line that calls pocketlm, continued lines joined, the comment after it left out."""
    lines = "".join(blocks(text)).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [re.sub(r"\s+", " ", line) for line in lines if line.startswith("pocketlm ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what README's commands name: recipes, a finished demo's file, a base, chats."""
    place = tmp_path_factory.mktemp("readme")
    (place / "recipes").symlink_to(ROOT / "recipes")
    tokenizer = train_tokenizer(["Compute 11+31+20. a question and an answer " * 30], 270)
    torch.manual_seed(0)
    shape = small(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=1024, initializer_range=0.3
    )
    (place / "chat").mkdir()
    save_checkpoint(
        place / "chat", Transformer(shape), Tokenizer(tokenizer.backend, chat_template=CHATML)
    )
    (place / "runs" / "pocket" / "files").mkdir(parents=True)
    files = ExportConfig(name="files", formats=("gguf",), min_agreement=0.5)
    export(files, place / "runs" / "pocket" / "files", model=place / "chat")
    base = place / "HuggingFaceTB" / "SmolLM2-135M"  # a folder where the hub's id would be asked
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save(base)
    row = {"prompt": "a question", "response": "an answer"}
    (place / "chats.jsonl").write_text((json.dumps(row) + "\n") * 20)
    return place


def typed(line: str, place: Path, stdin: str = "") -> str:
    """The output of a command line that must succeed."""
    environment = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    done = subprocess.run(
        line, shell=True, cwd=place, env=environment, input=stdin, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def served_page(line: str, place: Path) -> str:
    """The page of a server that is then stopped."""
    environment = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        f"exec {line} --port 0",
        shell=True,
        cwd=place,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            greeting = "".join(itertools.islice(server.stderr, 2))
            match = re.search(r"http://127\.0\.0\.1:\d+", greeting)
            assert match, greeting
            with urllib.request.urlopen(match[0], timeout=60) as page:
                return page.read().decode()
        finally:
            server.terminate()


def test_the_commands_of_the_readme_do_what_it_says(place: Path) -> None:
    lines = commands(DOCS[0].read_text())
    assert len(lines) == 4
    for line in lines:
        if line.startswith("pocketlm serve "):
            assert "<title>pocketlm</title>" in served_page(line, place)
            continue
        cut = next((more for recipe, more in CUT.items() if recipe in line), "")
        typed(f"{line} {cut}", place, stdin="Compute 11+31+20.\n")
    assert (place / "models" / "SmolLM2-135M" / "model.safetensors").is_file()
    assert (place / "runs" / "mine" / "files" / "model.gguf").is_file()


def test_the_python_of_the_readme_prints_an_answer(place: Path) -> None:
    (code,) = blocks(DOCS[0].read_text(), "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@cache
def help_of(words: tuple[str, ...]) -> str:
    """What a command prints with --help."""
    return CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_command_and_flag_that_a_document_prints_exists(document: Path) -> None:
    for line in commands(document.read_text()):
        words = line.split()[1:]
        recipe = [str(ROOT / word) for word in words if word.endswith(".py")]
        text = help_of((*words[: 2 if words[0] == "inspect" else 1], *recipe))
        assert "Usage" in text, f"{document.name}: {line}"
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{flag}\b", text), f"{document.name}: {line}: no flag {flag}"
