"""Conversations of several sources: shares, caps, long ones as a config says; what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketlm.data.batches import BLOCK, BatchPlan, ConversationRows, make_batches
from pocketlm.data.conversations import Limits, Pair, Tally, conversation_files, learnable_pairs
from pocketlm.model.batch import Batch
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.stages.chats import ChatsConfig
from pocketlm.stages.finetune import FinetuneConfig
from pocketlm.stages.quantize import QuantizeConfig
from pocketlm.stages.teach import TeachConfig, training_documents
from pocketlm.stages.training import conversation_sources
from pocketlm.train.optim import OptimConfig

STEPS = OptimConfig(lr=1e-2, num_steps=2, warmup_steps=0, final_lr_share=0.1)
CONFIG = FinetuneConfig(
    name="chat", optim=STEPS, seq_len=60, rows_per_step=64, micro_batch_size=8, seed=3, packed=False
)
SIZES = {"few": 5, "many": 60, "texts": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["the quick brown fox jumps over the lazy dog, hello there user assistant"] * 4
    return Tokenizer(train_tokenizer(texts, 290).backend, chat_template=CHATML)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents of three sources, one of which holds no conversation."""
    for name, size in SIZES.items():
        folder = tmp_path / "corpus" / "documents" / name
        folder.mkdir(parents=True)
        rows = [
            {"prompt": f"{name} {n}", "response": "fox " * (n % 7 + 1), "id": f"{name}:{n}"}
            for n in range(size)
        ]
        lines = [json.dumps(row) + "\n" for row in rows or [{"text": "a fox"}]]
        (folder / "train.jsonl").write_text("".join(lines))
    return tmp_path / "corpus"


def drawn(
    config: FinetuneConfig,
    corpus: Path,
    tokenizer: Tokenizer,
    steps: int,
    rank: int = 0,
    of: int = 1,
) -> list[Batch]:
    out = corpus.parent / "out" / str(hash(repr(config)))
    rows, shares = conversation_sources(config, out, corpus, tokenizer, packed=config.packed)
    plan = BatchPlan(
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=rank,
        world_size=of,
    )
    batches = make_batches(rows, shares, plan, separate_documents=True)
    return [batch for step in range(steps) for batch in batches(step)]


def pairs_of(corpus: Path, tokenizer: Tokenizer, *sources: str, **limits: Any) -> list[Pair]:
    files = conversation_files(corpus, sources)
    return list(learnable_pairs(files, tokenizer, Limits(seq_len=60, **limits), Tally()))


@pytest.mark.parametrize("packed", [True, False])
def test_without_shares_all_conversations_are_packed_together_and_drawn_equally(
    packed: bool, corpus: Path, tokenizer: Tokenizer
) -> None:
    rows, shares = conversation_sources(
        CONFIG, corpus.parent / "out", corpus, tokenizer, packed=packed
    )
    assert shares == {"conversations": 1.0}
    memory = ConversationRows(pairs_of(corpus, tokenizer), 60, tokenizer.eos_id, packed=packed)
    assert len(memory) == len(rows["conversations"]) and memory.documents() == 65
    for number in range(len(memory)):
        for one, other in zip(memory[number], rows["conversations"][number], strict=True):
            assert np.array_equal(one, other)
    store = json.loads((corpus.parent / "out/resume/conversations/store.json").read_text())
    # as earlier versions wrote it, so that a stage they began finds its store
    assert list(store["made_of"]) == ["files", "tokenizer", "chat_template", "seq_len", "packed"]


@pytest.mark.parametrize("packed", [True, False])
def test_each_source_has_its_share_of_the_rows_and_a_small_one_is_read_again(
    packed: bool, corpus: Path, tokenizer: Tokenizer
) -> None:
    shares = {"few": 0.75, "many": 0.25}
    config = replace(CONFIG, conversation_shares=shares, packed=packed)
    batches = drawn(config, corpus, tokenizer, BLOCK // 64)
    places = Counter(place for batch in batches for place in batch.rows)
    of = {name: sum(n for (source, _), n in places.items() if source == name) for name in shares}
    assert of == {"few": BLOCK * 3 // 4, "many": BLOCK // 4}
    for name in shares:  # passes are whole: no row of a source is read twice before all were once
        counts = [n for (source, _), n in places.items() if source == name]
        assert max(counts) - min(counts) <= 1
    few = ConversationRows(pairs_of(corpus, tokenizer, "few"), 60, tokenizer.eos_id, packed=packed)
    assert len([place for place in places if place[0] == "few"]) == len(few)
    for name, number in batches[0].rows:
        ids = batches[0].input_ids[batches[0].rows.index((name, number))]
        if name == "few":
            assert np.array_equal(ids.numpy(), few[number][0])
    written = json.loads(next((corpus.parent / "out").glob("*/conversations.json")).read_text())
    assert {name: one["learnt"] for name, one in written["sources"].items()} == {
        "few": 5,
        "many": 60,
    }
    assert written["learnt"] == 65


def test_the_rows_of_a_step_are_the_same_again_and_on_four_ranks(
    corpus: Path, tokenizer: Tokenizer
) -> None:
    config = replace(
        CONFIG,
        conversation_shares={"few": 0.5, "many": 0.5},
        max_conversations={"many": 20},
        too_long="truncate",
    )
    one, again = (drawn(config, corpus, tokenizer, 3) for _ in range(2))
    ranks = [drawn(config, corpus, tokenizer, 3, rank, 4) for rank in range(4)]
    for step in range(3):
        whole, repeated = (batches[8 * step : 8 * step + 8] for batches in (one, again))
        divided = [batch for rank in ranks for batch in rank[2 * step : 2 * step + 2]]
        for batch, other, part in zip(whole, repeated, divided, strict=True):
            assert batch.rows == other.rows == part.rows
            for name in ("input_ids", "labels", "doc_ids"):
                tensor = getattr(batch, name)
                assert torch.equal(tensor, getattr(other, name))
                assert torch.equal(tensor, getattr(part, name))
    other = replace(config, seed=4)
    assert [b.rows for b in drawn(other, corpus, tokenizer, 1)] != [b.rows for b in one[:8]]


def test_a_cap_and_what_becomes_of_long_conversations_make_another_store(
    corpus: Path, tokenizer: Tokenizer
) -> None:
    """In one folder: nothing of an earlier store is taken for the new one."""
    out, seen = corpus.parent / "out", []
    configs = (
        CONFIG,
        replace(CONFIG, seq_len=20),
        replace(CONFIG, seq_len=20, too_long="truncate"),
        replace(CONFIG, max_conversations={"many": 7}),
    )
    for config in configs:
        rows, _ = conversation_sources(config, out, corpus, tokenizer, packed=False)
        seen.append(len(rows["conversations"]))
        assert json.loads((out / "conversations.json").read_text())["learnt"] == seen[-1]
    assert seen[0] == 65 == seen[2] and 0 < seen[1] < 65 and seen[3] == 12


def test_a_teacher_on_disk_reads_truncated_conversations_as_the_student_does(
    corpus: Path, tokenizer: Tokenizer
) -> None:
    shares = {"few": 0.5, "many": 0.5}
    student = replace(CONFIG, seq_len=20, too_long="truncate", conversation_shares=shares)
    rows, _ = conversation_sources(student, corpus.parent / "out", corpus, tokenizer, packed=False)
    cache = TeachConfig(name="cache", window=20, conversations=True, too_long="truncate")
    taught = training_documents(cache, corpus, tokenizer, None, corpus.parent / "cache")
    learnt = {one.key(number) for one in rows.values() for number in range(one.documents())}
    assert len(learnt) == 65 and learnt == taught.keys()
    dropped = replace(cache, too_long="drop")
    assert (
        learnt
        > training_documents(dropped, corpus, tokenizer, None, corpus.parent / "dropped").keys()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"too_long": "cut"}, r"chat\.too_long 'cut' is unknown; known: drop, truncate"),
        ({"max_conversations": {"few": 0}}, r"chat\.max_conversations of few is 0; it must be at"),
        (
            {"sources": ("few",), "conversation_shares": {"few": 1.0}},
            "chat: conversation_shares name the sources; leave `sources` empty",
        ),
    ],
)
def test_fields_that_are_wrong_or_contradict_are_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    quantized = QuantizeConfig(name="chat", scheme="int4_group32", optim=STEPS)
    for config in (CONFIG, quantized):
        with pytest.raises(ValueError, match=message):
            replace(config, **changes)
    for text in ({"conversation_shares": {"few": 1.0}}, {"max_conversations": {"few": 3}}):
        with pytest.raises(ValueError, match="chat: shares train on text"):
            replace(quantized, shares={"few": 1.0}, **text)
    for make in (
        lambda: ChatsConfig(name="chats", seq_len=9, too_long="cut"),  # type: ignore[arg-type]
        lambda: TeachConfig(name="cache", window=9, too_long="cut"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="too_long 'cut' is unknown"):
            make()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"conversation_shares": {"few": 0.7, "many": 0.7}}, ValueError, "sum to 1.4000, not to 1"),
        ({"conversation_shares": {"few": 1.5, "many": -0.5}}, ValueError, "not be negative: many"),
        (
            {"conversation_shares": {"gone": 1.0}},
            FileNotFoundError,
            "no source 'gone' with training documents",
        ),
        (
            {"conversation_shares": {"few": 0.5, "texts": 0.5}},
            ValueError,
            "texts.*no row is a conversation",
        ),
        (
            {"max_conversations": {"gone": 3}},
            ValueError,
            r"chat\.max_conversations names gone, which .* it has few, many, texts",
        ),
    ],
)
def test_sources_that_are_not_there_or_have_nothing_to_learn_stop_the_stage_by_name(
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    corpus: Path,
    tokenizer: Tokenizer,
) -> None:
    config = replace(CONFIG, **changes)
    with pytest.raises(error, match=message):
        conversation_sources(config, corpus.parent / "out", corpus, tokenizer, packed=True)
