"""The papers' recipes, and the one for a model of one's own, are rehearsed to their last stage;
test_rehearse_ranks.py does it with four processes.
"""

import random
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.corpus.documents import Document, row_document
from pocketlm.corpus.reading import Reading
from pocketlm.corpus.sources import HubSource, LocalSource, NoteSource, Source
from pocketlm.model.presets import PRESETS
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.rehearsal.cut import Cut, cut_config, cut_lines, length_map
from pocketlm.rehearsal.rehearsed import chat_sources, opened, prepare, rehearsed
from pocketlm.rehearsal.stand_ins import VOCAB_SIZE, make_model, make_source, row_of
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe, parse_flags
from pocketlm.runner.record import Call, read_record
from pocketlm.runner.run import Run

RECIPES = Path(__file__).parents[2] / "recipes"
OWN = ["nowhere/model", "--chats", "nowhere/chats.jsonl", "--text", "nowhere/books"]
REHEARSED = {
    "r1-140m": ("r1.py", ["--size", "140m", "--rl", "nowhere/problems.jsonl"]),
    "r1-found": ("r1.py", ["--mix", "found", "--left-out"]),
    "pro": ("pro.py", ["--pairs", "nowhere/pairs.jsonl"]),
    "pro-found": ("pro.py", ["--mix", "found", "--left-out"]),
    "specialize": ("specialize.py", OWN),
}


def full_calls(recipe: Path, words: list[str], folder: Path) -> list[Call]:
    function = load_recipe(recipe)
    flags = parse_flags(function, recipe, words)
    return dry_run(function, folder / "nowhere", missing_ok=True, **flags).calls


@pytest.mark.parametrize(("name", "words"), REHEARSED.values(), ids=list(REHEARSED))
def test_every_stage_of_the_recipe_runs_in_its_order_with_its_own_tables(
    name: str, words: list[str], tmp_path: Path
) -> None:
    calls = full_calls(RECIPES / name, words, tmp_path)
    script = prepare(calls, tmp_path, RECIPES / name, words, [], 1, all_formats=False)
    with Run(tmp_path / "run") as run:
        rehearsed(run, script.with_suffix(".json"))
    for call in calls:
        record = read_record(tmp_path / "run" / call.name)
        assert record and record["status"] == "finished", call.name
        config = record["config"]
        assert config.get("shares") == getattr(call.config, "shares", None), call.name
        assert config.keys() == {field.name for field in fields(call.config) if field.compare}
        if config.get("optim"):
            assert config["optim"]["num_steps"] == 2
            assert config["optim"]["lr"] == call.config.optim.lr


# ---- what is cut ----


def test_lengths_keep_their_order_and_one_between_them_becomes_the_next_longer() -> None:
    @dataclass(frozen=True)
    class Config:
        seq_len: int
        needle_tokens: tuple[int, ...] = ()

    lengths = length_map([Config(2048), Config(131_072, (512, 2048)), PRESETS["pro"]])
    assert lengths == {512: 96, 2048: 160, 131_072: 224}
    cut = Cut(lengths=lengths, processes=1, vocab_size=300)
    named = {100: 96, 512: 96, 513: 160, 9999: 224, 10**9: 224}
    assert {tokens: cut.length(tokens) for tokens in named} == named


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_cut_network_keeps_what_kind_it_is(name: str) -> None:
    shape = PRESETS[name]
    small = cut_config(shape, Cut(lengths=length_map([shape]), processes=1, vocab_size=300))
    assert small.hidden_size == 32 and small.vocab_size == 300 and small.num_hidden_layers <= 4
    assert set(small.layer_types) == set(shape.layer_types)
    assert (small.num_key_value_heads < small.num_attention_heads) == (
        shape.num_key_value_heads < shape.num_attention_heads
    )
    kept = ("use_qk_norm", "tie_word_embeddings", "layer_repeats", "rope_theta")
    assert all(getattr(small, field) == getattr(shape, field) for field in kept)


def test_every_process_has_rows_and_a_step_that_accumulates_still_does(tmp_path: Path) -> None:
    calls = {call.name: call.config for call in full_calls(RECIPES / "pro.py", [], tmp_path)}
    lengths = length_map(calls.values())
    for processes in (1, 4, 8):
        cut = Cut(lengths=lengths, processes=processes, vocab_size=300)
        phase1, phase2 = (cut_config(calls[name], cut) for name in ("phase1", "phase2"))
        assert (phase1.rows_per_step, phase1.micro_batch_size) == (4 * processes, 2)
        assert (phase2.rows_per_step, phase2.micro_batch_size) == (2 * processes, 1)
        whole = replace(calls["phase2"], rows_per_step=processes)
        assert cut_config(whole, cut).rows_per_step == processes


def test_what_was_cut_is_said_by_field_and_a_config_left_alone_says_nothing(tmp_path: Path) -> None:
    config = {call.name: call.config for call in full_calls(RECIPES / "r1.py", [], tmp_path)}
    cut = Cut(lengths=length_map(config.values()), processes=1, vocab_size=300)
    lines = list(cut_lines(config["phase1"], cut_config(config["phase1"], cut)))
    assert "optim.num_steps 500,000 -> 2" in lines and "seq_len 2,048 -> 160" in lines
    assert "model 15 layers of 576 -> 2 layers of 32" in lines
    assert list(cut_lines(config["int4"], config["int4"])) == []
    caps = list(cut_lines(config["reasoning"], cut_config(config["reasoning"], cut)))
    assert "max_conversations.opencode-cpp 950,400 -> 20" in caps


def documents_of(source: Source) -> list[Document]:
    """Everything that tasks read of a source."""
    reading = Reading()
    parts = source.parts(1 << 20, reading)
    return [document for part in parts for document in source.documents(part.place, reading)]


# ---- what stands in ----

HUB = HubSource(name="own", domain="code", dataset="them/texts", split="train", filters=())


@pytest.mark.parametrize(
    "changes",
    [
        {"text_field": "content"},
        {"prompt_field": "input.0.content", "response_field": "output"},
        {"prompt_field": "question", "response_field": "responses.0.response"},
        {"config": "SFT", "split": "math", "text_field": "text"},
        {"config": "cot", "revision": "refs/convert/parquet"},
    ],
)
def test_a_hub_source_reads_generated_rows_of_its_own_fields_config_and_split(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    source = replace(HUB, **changes)
    made = make_source(source, tmp_path / "set", chats=False)
    documents = documents_of(made)
    assert replace(made, dataset=HUB.dataset) == source and made.dataset == str(tmp_path / "set")
    assert len({document.text for document in documents}) == len(documents) >= 20
    assert all(bool(document.messages) == ("prompt_field" in changes) for document in documents)
    with pytest.raises(ValueError, match="Bad split: elsewhere"):
        documents_of(replace(made, split="elsewhere"))


def test_rows_without_named_fields_are_conversations_where_a_stage_learns_answers() -> None:
    draw = random.Random(1)
    chat = row_document(row_of(HUB, draw, chats=True), "1", "here", None)
    text = row_document(row_of(HUB, draw, chats=False), "2", "here", None)
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] and not text.messages


def test_a_source_that_is_here_or_makes_its_own_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("A note.")
    local = LocalSource(name="own", domain="code", path=str(tmp_path / "notes.txt"))
    made = NoteSource(name="made", domain="code", count=5, pairs_range=(1, 2))
    for source in (local, made):
        assert make_source(source, tmp_path / "set", chats=False) is source
    gone = replace(local, path=str(tmp_path / "gone.txt"))
    assert len(list(documents_of(make_source(gone, tmp_path / "set", chats=False)))) >= 20


def test_the_stand_in_model_speaks_the_stand_in_tokenizer(tmp_path: Path) -> None:
    make_model(tmp_path / "model", 128)
    assert Tokenizer.load(tmp_path / "model").vocab_size == VOCAB_SIZE


def test_only_sources_that_no_text_training_reads_are_conversations(tmp_path: Path) -> None:
    calls = full_calls(RECIPES / "specialize.py", OWN, tmp_path)
    corpus = next(call for call in calls if call.name == "corpus")
    assert chat_sources(corpus, calls) == {"chats"}
    r1 = {call.name: call for call in full_calls(RECIPES / "r1.py", [], tmp_path)}
    assert chat_sources(r1["corpus-general"], r1.values()) == {"tulu3"}
    assert chat_sources(r1["corpus-pretrain"], r1.values()) == set()
    pro = {call.name: call for call in full_calls(RECIPES / "pro.py", [], tmp_path)}
    raised = pro["instruct"].config.conversation_shares
    for calls in ([pro["instruct"]], pro.values()):  # named by shares, as by sources
        assert chat_sources(pro["corpus-instruct"], calls) == set(raised)


# ---- what a rehearsal finds ----

BROKEN = """
from dataclasses import replace
from pathlib import Path
import sys
sys.path.insert(0, "{recipes}")
import r1


def recipe(run):
    corpus = run(r1.curate, r1.CurateConfig(
        name="corpus", sources=(r1.PRETRAINING[0],), tokenizer="Llama", probe_share=0.0))
    shares = {shares}
    return run(r1.pretrain, replace(
        r1.PRETRAIN, name="phase1", model=r1.SHAPES["140m"], shares=shares, {changes}),
        corpus=corpus)
"""


def rehearse(tmp_path: Path, *words: str, shares: str, changes: str = "") -> None:
    recipe = tmp_path / "broken.py"
    recipe.write_text(BROKEN.format(recipes=RECIPES, shares=shares, changes=changes))
    calls = full_calls(recipe, [], tmp_path)
    script = prepare(calls, tmp_path, recipe, [], list(words), 1, all_formats=False)
    with Run(tmp_path / "run") as run:
        rehearsed(run, script.with_suffix(".json"))


def test_a_mix_that_names_a_source_its_corpus_lacks_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shares name unknown sources wiki; known: starcoder"):
        rehearse(tmp_path, shares='{"starcoder": 0.5, "wiki": 0.5}')


def test_rows_longer_than_the_network_reads_are_found_and_set_changes_the_recipe(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="exceeds max_position_embeddings"):
        rehearse(tmp_path, shares='{"starcoder": 1.0}', changes="seq_len=8192")
    (tmp_path / "again").mkdir()
    short = "phase1.seq_len=2048"
    rehearse(tmp_path / "again", short, shares='{"starcoder": 1.0}', changes="seq_len=8192")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r1.py", "--processes", "0"], "--processes 0: at least 1"),
        (["r1.py", "--gpu", "this"], "--gpu this: name what it will run on"),
        (["r1.py", "--size", "2b"], "--size 2b: the published sizes are"),
        (["pro.py", "--windows", "6", "--processes", "4"], "does not divide into micro-batches"),
        (["nowhere.py"], "no such recipe"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_runs(words: list[str], message: str) -> None:
    command = ["rehearse", str(RECIPES / words[0]), *words[1:]]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_its_file_opens_with_the_recipe_and_the_flags_it_was_prepared_with(tmp_path: Path) -> None:
    words = ["--size", "360m"]
    calls = full_calls(RECIPES / "r1.py", words, tmp_path)
    script = prepare(calls, tmp_path, RECIPES / "r1.py", words, ["general.seed=7"], 4, True)
    rehearsal, _, flags = opened(script.with_suffix(".json"))
    assert flags["size"] == "360m" and rehearsal.cut.processes == 4 and rehearsal.cut.all_formats
    general = next(call.config for call in calls if call.name == "general")
    assert rehearsal.config(general).seed == 7
