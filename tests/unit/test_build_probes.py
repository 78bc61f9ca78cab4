"""Probe sets: junk and repetitions that were planted go, and what each step did can be read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_corpus import KINDS, MEMBERSHIP, Planted, write_labels, write_planted
from rank_processes import on_ranks
from shapes import small

from pocketlm.data import score_files
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.probe_building import ask
from pocketlm.data.probe_building.ask import asker_of
from pocketlm.data.probe_sets import open_probe_sets
from pocketlm.data.shards import read_shard
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.files import read_json
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages import probes as stage
from pocketlm.stages.find_mix import MixConfig
from pocketlm.stages.probes import ProbeConfig, build_probes
from pocketlm.stages.proxies import Proxies
from pocketlm.stages.select import SelectConfig, select
from pocketlm.train.optim import OptimConfig

PROMPTS = {"knowledge": "Facts? {text}", "maths": "Sums? {text}"}
CONFIG = ProbeConfig(
    name="probes",
    membership=MEMBERSHIP,
    min_quality=2.5,
    prompt="Reasons? {text}",
    capability_prompts=PROMPTS,
    top_share=0.5,
    ask_tokens=160,
    max_cosine=0.9,  # lessons of few words are more alike than real texts
    documents_per_cluster=1000,
    batch_rows=4,
    seed=2,
)

SELECT = SelectConfig(
    name="select",
    seq_len=64,
    candidate_tokens=500,
    probe_rows=6,
    batch_rows=4,
    budget_tokens=1000,
    max_epochs=50.0,
    seed=1,
    compute_dtype="float32",
)
MIX = MixConfig(
    name="mix",
    methods={"flat": UniformMix()},
    selected="flat",
    proxy=small(vocab_size=600),
    optim=OptimConfig(lr=1e-2, num_steps=1, warmup_steps=0, final_lr_share=0.1),
    seq_len=64,
    rows_per_step=1,
    micro_batch_size=1,
    budget_tokens=1000,
    max_epochs=50.0,
    seed=1,
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    torch.set_num_threads(1)
    return write_planted(tmp_path_factory.mktemp("planted") / "corpus")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_labels(tmp_path_factory.mktemp("labels") / "labels.jsonl"))


@pytest.fixture(scope="module")
def asker(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asker")
    shape = small(vocab_size=600, max_position_embeddings=256, initializer_range=0.3)
    tokenizer = Tokenizer.load(planted.corpus / "tokenizer")
    save_checkpoint(folder, Transformer(shape, seed=4), tokenizer)
    return folder


def numbers_left(planted: Planted, out: Path) -> dict[str, dict[str, set[int]]]:
    """By capability and source the numbers, in the corpus, of the documents in the probe sets."""
    tokenizer = Tokenizer.load(planted.corpus / "tokenizer")
    start = len(tokenizer.document_start)
    left: dict[str, dict[str, set[int]]] = {}
    for capability, shards in open_probe_sets(planted.corpus, out).shards.items():
        left[capability] = {
            source: {
                planted.texts[source].index(tokenizer.decode(shard.document(i)[start:].tolist()))
                for i in range(len(shard))
            }
            for source, shard in shards.items()
        }
    return left


def step(out: Path, name: str, capability: str | None = None) -> dict[str, Any]:
    steps = read_json(out / "probes.json")["steps"]
    (one,) = [s for s in steps if s["step"] == name and s.get("capability") == capability]
    return one


# ---- what is planted goes ----


@pytest.fixture(scope="module")
def built(planted: Planted, labels: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(CONFIG, scorer=labels)
    return build_probes(config, tmp_path_factory.mktemp("built"), corpus=planted.corpus)


def test_planted_junk_and_paraphrases_go_and_lessons_stay(planted, built):
    left: dict[str, set[int]] = {}
    for by_source in numbers_left(planted, built).values():
        for source, numbers in by_source.items():
            left.setdefault(source, set()).update(numbers)
    dropped = {
        (source, number)
        for source, kinds in planted.kinds.items()
        for number in range(len(kinds))
        if number not in left[source]
    }
    by_kind = {kind: [] for kind in KINDS}
    for source, kinds in planted.kinds.items():
        for number, kind in enumerate(kinds):
            if kind in ("shuffled", "licence", "menu"):
                by_kind[kind].append((source, number) in dropped)
    # of a lesson and its paraphrase one is to go, whichever
    pairs = [{place, original} for place, original in planted.retold.items()]
    by_kind["paraphrase"] = [bool(pair & dropped) for pair in pairs]
    recall = {kind: float(np.mean(gone)) for kind, gone in by_kind.items()}
    print({kind: round(value, 3) for kind, value in recall.items()})
    assert recall["licence"] == recall["menu"] == 1.0
    assert recall["shuffled"] >= 0.9 and recall["paraphrase"] >= 0.9
    rightly = sum(sum(gone) for gone in by_kind.values())
    precision = rightly / len(dropped)
    print("precision", round(precision, 3), "of", len(dropped))
    assert precision >= 0.95
    assert not any(pair <= dropped for pair in pairs)


def test_each_step_says_what_it_kept_with_examples_of_both(planted, built):
    quality = step(built, "quality")
    assert quality["by"] == "ridge regression on 120 labels of labels.jsonl"
    assert 0 < quality["leave_one_out_error"] < 0.5 * quality["spread_of_labels"]
    for source, texts in planted.texts.items():
        figures = quality["sources"][source]
        assert figures["of"] == len(texts) and 0 < figures["kept"] < len(texts)
        assert figures["cut"] == 0
        examples = figures["examples"]
        assert [len(examples[kind]) for kind in ("kept", "dropped")] == [3, 3]
        assert all(e["score"] >= 2.5 for e in examples["kept"])
        assert all(e["score"] < 2.5 for e in examples["dropped"])
        assert all(len(e["text"]) <= 202 for kind in examples.values() for e in kind)
        # the next step has what this one left
        assert step(built, "deduplication")["sources"][source]["of"] == figures["kept"]
    alike = [
        example
        for source in step(built, "deduplication")["sources"].values()
        for example in source["examples"]["dropped"]
    ]
    assert alike and all(e["cosine"] > 0.9 and e["text"] and e["like"] for e in alike)
    assert step(built, "ask") == {"step": "ask", "skipped": "no asker"}
    assert step(built, "ask_by_capability")["skipped"] == "no asker"
    written = read_json(built / "probes.json")["capabilities"]
    assert {c: tuple(sorted(by)) for c, by in written.items()} == MEMBERSHIP
    for capability, by_source in written.items():
        for source, figures in by_source.items():
            assert (
                figures["documents"] == step(built, "size", capability)["sources"][source]["kept"]
            )


def test_a_source_may_serve_several_capabilities(planted, built):
    left = numbers_left(planted, built)
    assert left["knowledge"]["web"] == left["maths"]["web"]
    assert open_probe_sets(planted.corpus, built).capabilities == {
        "knowledge": ("forum", "web"),
        "maths": ("lessons", "web"),
    }


# ---- the asker ----


def asked(planted: Planted, asker: Path, prompt: str, source: str, numbers: list[int]) -> list[int]:
    """The half of these documents that the asker, given one after the other, says yes to most."""
    score = asker_of(LanguageModel.open(asker), prompt, CONFIG.ask_tokens, "test")
    values = {number: float(score([planted.texts[source][number]])[0][0]) for number in numbers}
    return sorted(sorted(numbers, key=lambda n: -values[n])[: -(-len(numbers) // 2)])


def test_the_top_share_of_each_source_stays_twice_by_the_general_and_by_the_own_prompt(
    planted, asker, tmp_path, monkeypatch
):
    monkeypatch.setattr(stage, "dtype_of", lambda *_: None)  # a coarser product may swap two texts
    config = replace(CONFIG, max_cosine=1.01)  # none is so near
    left = numbers_left(planted, build_probes(config, tmp_path, corpus=planted.corpus, asker=asker))
    for source, texts in planted.texts.items():
        general = asked(planted, asker, CONFIG.prompt, source, list(range(len(texts))))
        for capability, prompt in PROMPTS.items():
            if source in MEMBERSHIP[capability]:
                once_more = asked(planted, asker, prompt, source, general)
                assert sorted(left[capability][source]) == once_more, (source, capability)
    assert left["knowledge"]["web"] != left["maths"]["web"]
    cut = step(tmp_path, "ask")["sources"]["web"]["cut"]
    tokenizer = Tokenizer.load(asker)
    assert cut == sum(len(tokenizer.encode(text)) > 160 for text in planted.texts["web"]) > 0
    assert step(tmp_path, "quality") == {"step": "quality", "skipped": "no scorer in the config"}


def test_of_the_rest_the_best_stay_up_to_a_size(planted, labels, asker, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "dtype_of", lambda *_: None)
    config = replace(CONFIG, scorer=labels, examples_per_source=2)
    out = build_probes(config, tmp_path, corpus=planted.corpus, asker=asker)
    for capability, prompt in PROMPTS.items():
        sizes = step(out, "size", capability)["sources"]
        score = asker_of(LanguageModel.open(asker), prompt, CONFIG.ask_tokens, "test")
        for source, numbers in numbers_left(planted, out)[capability].items():
            assert sizes[source]["kept"] == len(numbers) == 2 < sizes[source]["of"]
            lowest = min(score([planted.texts[source][n]])[0][0] for n in numbers)
            dropped = sizes[source]["examples"]["dropped"]
            assert dropped and all(e["score"] <= lowest + 1e-6 for e in dropped)


# ---- who looks at them ----


def test_influence_and_proxies_look_at_the_built_sets(planted, built, asker, tmp_path):
    assert Proxies(MIX, tmp_path, planted.corpus, built).capabilities == MEMBERSHIP
    by_domain = Proxies(MIX, tmp_path, planted.corpus).capabilities
    assert by_domain == {"knowledge": ("forum", "web"), "maths": ("lessons",)}
    influence = []
    for number, more in enumerate(({}, {"probes": built})):
        out = select(SELECT, tmp_path / str(number), corpus=planted.corpus, model=asker, **more)
        influence.append(read_json(out / "selection.json")["influence"])
    assert influence[0] != influence[1]


# ---- resuming, ranks ----


def test_an_interrupted_build_scores_no_batch_twice(planted, asker, tmp_path, monkeypatch):
    whole = build_probes(CONFIG, tmp_path / "whole", corpus=planted.corpus, asker=asker)
    calls = 0
    compute = ask.next_logits

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(ask, "next_logits", failing)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_probes(CONFIG, out, corpus=planted.corpus, asker=asker)
    build_probes(CONFIG, out, corpus=planted.corpus, asker=asker)
    assert read_json(out / "probes.json") == read_json(whole / "probes.json")
    rows = [
        figures["of"]
        for entry in read_json(out / "probes.json")["steps"]
        if entry["step"].startswith("ask")
        for figures in entry["sources"].values()
    ]
    assert calls == sum(-(-count // 4) for count in rows) + 1


def build_on_ranks(out: Path, labels: str, corpus: Path, asker: Path) -> None:
    build_probes(replace(CONFIG, scorer=labels), out, corpus=corpus, asker=asker)


def test_two_ranks_build_what_one_builds(planted, labels, asker, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    assert on_ranks(2, tmp_path, build_on_ranks, out, labels, planted.corpus, asker) == [None] * 2
    monkeypatch.setattr(score_files, "MAX_FILES", 2)  # groups of batches
    config = replace(CONFIG, scorer=labels)
    alone = build_probes(config, tmp_path / "alone", corpus=planted.corpus, asker=asker)
    assert numbers_left(planted, out) == numbers_left(planted, alone)
    assert len(list((alone / "resume" / "scores" / "ask" / "web").iterdir())) == 2


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"membership": {}}, "membership names no capability"),
        ({"membership": {"maths": ()}}, r"membership\.maths has no source"),
        ({"membership": {"../maths": ("web",)}}, "cannot be the name of a folder"),
        ({"prompt": "Good?"}, r"prompt has no \{text\}"),
        ({"capability_prompts": {"maths": "?"}}, r"capability_prompts\.maths has no \{text\}"),
        ({"embedder": "bert"}, "embedder 'bert' is unknown; known: hashed, wordllama"),
        ({"top_share": 0.0}, "top_share 0.0 is not in"),
        ({"batch_rows": 0}, "batch_rows 0 is below 1"),
    ],
)
def test_a_config_that_cannot_be_is_one_message(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"membership": {"maths": ("web", "wep")}}, "has no source 'wep'; it has forum, lessons"),
        ({"membership": {"maths": ("web", "forum")}}, "source 'lessons' serves no capability"),
        ({"left_out": ("web",)}, "source 'web' is in membership and in left_out"),
        ({"min_quality": 99.0}, r"nothing is left for capability 'knowledge' \(forum 42 -> 0 by q"),
    ],
)
def test_a_membership_that_does_not_fit_the_corpus_is_one_message(
    changes, message, planted, labels, tmp_path
):
    with pytest.raises(ValueError, match=message):
        build_probes(replace(CONFIG, scorer=labels, **changes), tmp_path, corpus=planted.corpus)
    assert not (tmp_path / "probes.json").exists()


def test_a_source_may_be_left_out_by_name(planted, tmp_path):
    config = replace(CONFIG, membership={"maths": ("web",)}, left_out=("forum", "lessons"))
    out = build_probes(config, tmp_path, corpus=planted.corpus)
    assert list(read_shard(out / "probes" / "maths" / "web", "probe").document(0)[:1]) == [0]
    assert open_probe_sets(planted.corpus, out).capabilities == {"maths": ("web",)}


def test_a_capability_without_a_prompt_is_refused_where_it_would_be_asked(planted, asker, tmp_path):
    config = replace(CONFIG, capability_prompts={"maths": "{text}"})
    with pytest.raises(ValueError, match=r"capability_prompts has none for 'knowledge'"):
        build_probes(config, tmp_path, corpus=planted.corpus, asker=asker)


def test_probes_of_another_tokenizer_or_another_folder_are_refused(planted, built, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no probes\.json; is it the output of"):
        open_probe_sets(planted.corpus, tmp_path)
    other = tmp_path / "corpus"
    (other / "tokenizer").mkdir(parents=True)
    train_tokenizer(["other words " * 40], 262).save(other / "tokenizer")
    with pytest.raises(ValueError, match="token ids of another tokenizer"):
        open_probe_sets(other, built)
