"""A Hugging Face llama of random weights and twenty chats become a 4-bit file; mistakes are told at
once.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from pocketlm.model.checkpoint import load_checkpoint, quantization_of
from pocketlm.model.quant import SCALE, SCHEMES, prepare
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.runner.run import Run
from pocketlm.stages.evaluate import EvaluateConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "specialize.py"
# an almost untrained model is unsure of every token, so its files agree less than a real one's
UNSURE = {"files": {"min_agreement": "0.5"}}
TINY = {"context": 64, "steps": 3, "rows": 2, "int4_steps": 2, "lr": 1e-3, "formats": "gguf"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model as another library writes it: no chat template, no field of ours."""
    folder = tmp_path_factory.mktemp("base")
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads)).save_pretrained(
        folder
    )
    train_tokenizer(["a question and an answer about the weather " * 30], 265).save(folder)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"What is {i} + {i}?", "response": f"{i} + {i} = {2 * i}"} for i in range(19)
    ]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": turns}]))
    return file


def specialized(base: Path, out: Path, **flags) -> Path:
    recipe = load_recipe(RECIPE)
    flags = {"base": base, **TINY, **flags}
    with Run(out, plan=dry_run(recipe, out, UNSURE, **flags)) as run:
        return recipe(run, **flags)


def test_chats_and_a_foreign_base_become_a_four_bit_file_that_opens(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    files = specialized(base, tmp_path / "out", chats=chats)
    assert (files / "model.gguf").read_bytes()[:4] == b"GGUF"
    assert quantization_of(tmp_path / "out" / "int4") == "int4_group32"
    _, tokenizer = load_checkpoint(tmp_path / "out" / "chat")
    assert tokenizer.chat_template is not None and tokenizer.backend.get_vocab_size() == 265
    told = json.loads((tmp_path / "out" / "corpus" / "curation.json").read_text())
    assert told["sources"]["chats"]["kept"]["train"]["documents"] == 20


def test_text_alone_adapts_the_base_and_is_what_four_bits_are_trained_on(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("The weather is an answer to a question. " * 40)
    files = specialized(base, tmp_path / "out", text=tmp_path / "notes.txt")
    assert (files / "model.gguf").is_file() and not (tmp_path / "out" / "chat").exists()
    _, tokenizer = load_checkpoint(tmp_path / "out" / "int4")
    assert tokenizer.chat_template is None


def test_the_accelerator_scheme_is_trained_and_leaves_without_a_pte(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    files = specialized(
        base, tmp_path / "out", chats=chats, scheme="int4_channel", formats="gguf,hf", int4_steps=4
    )
    assert quantization_of(tmp_path / "out" / "int4") == "int4_channel" and (files / "hf").is_dir()
    start, _ = load_checkpoint(tmp_path / "out" / "chat")
    scales = {
        name: parameter
        for name, parameter in load_checkpoint(tmp_path / "out" / "int4")[0].named_parameters()
        if name.endswith(SCALE)
    }
    first = prepare(start, SCHEMES["int4_channel"]).state_dict()
    assert scales and all(not scale.equal(first[name]) for name, scale in scales.items())
    with pytest.raises(ValueError, match=r"--scheme int4_channel has no \.pte.*--formats gguf,hf"):
        dry_run(load_recipe(RECIPE), tmp_path, base=base, chats=chats, scheme="int4_channel")
    with pytest.raises(
        ValueError, match="unknown quantization scheme 'int3'; known: int4_group32, "
    ):
        dry_run(
            load_recipe(RECIPE), tmp_path, base=base, chats=chats, scheme="int3", formats="gguf"
        )


def test_with_neither_chats_nor_text_the_recipe_says_what_to_give(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--chats FILE\.jsonl.*--text"):
        dry_run(load_recipe(RECIPE), tmp_path, base=base)


def test_with_a_suite_the_recipe_ends_with_the_base_the_tuned_and_the_shipped_model(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    measured = {"suite": Path("arc_easy,bpb.piqa"), "benchmarks": tmp_path / "benchmarks"}
    flags: dict[str, Any] = {"base": base, "chats": chats, **TINY}
    plain = dry_run(load_recipe(RECIPE), tmp_path / "run", UNSURE, **flags)
    dry = dry_run(
        load_recipe(RECIPE), tmp_path / "run", UNSURE, missing_ok=True, **flags, **measured
    )
    last = dry.calls[-1]
    assert [call.name for call in dry.calls[:-1]] == [call.name for call in plain.calls]
    config = last.config
    assert isinstance(config, EvaluateConfig)
    assert config.labels == ("base", "chat", "int4", "model.gguf")
    assert config.suites == ("arc_easy", "bpb.piqa") and config.data == str(measured["benchmarks"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "2+2?", "reply": "4"},
            r'chats.jsonl:1: no field "text".*"prompt" with "response"',
        ),
        ({"text": "no chat at all"}, "no row is a conversation"),
    ],
)
def test_a_file_of_other_rows_is_no_chats_file(
    base: Path, tmp_path: Path, row: dict, message: str
) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        specialized(base, tmp_path / "out", chats=file)


def test_chats_that_cannot_be_learnt_are_told_before_the_text_is_read(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("The weather is an answer to a question. " * 40)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        json.dumps({"prompt": "What is the weather?", "response": "rain " * 99}) + "\n"
    )
    with pytest.raises(ValueError, match=r"no conversation of at most 65 tokens \(1 are longer\)"):
        specialized(base, tmp_path / "out", text=tmp_path / "notes.txt", chats=chats)
    assert not (tmp_path / "out" / "adapted").exists()
