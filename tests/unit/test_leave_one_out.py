"""Leaving sources out, against a plain training loop and torch's cross-entropy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rank_processes import on_ranks
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.probe_sets import ProbeSets
from pocketlm.model.files import read_json, write_json
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages import proxies
from pocketlm.stages.leave_one_out import LeaveOneOutConfig, leave_one_out, rank_correlations
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers

WINDOW = 64  # no document is longer
PROXY = small(
    vocab_size=VOCAB_SIZE, num_hidden_layers=1, max_position_embeddings=64, initializer_range=0.1
)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=8, warmup_steps=1, final_lr_share=0.1, compute_dtype="float32"
)
CONFIG = LeaveOneOutConfig(
    name="loo",
    proxy=PROXY,
    optim=OPTIM,
    seq_len=WINDOW,
    rows_per_step=4,
    micro_batch_size=1,
    seed=3,
    probe_tokens=200,
    min_fall=0.1,
    num_seeds=2,
    save=SaveConfig(every_steps=3),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("loo") / "corpus")


@pytest.fixture(scope="module")
def compared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = leave_one_out(CONFIG, tmp_path_factory.mktemp("out"), corpus=corpus)
    assert not [*out.rglob("resume"), *out.rglob("milestones")]
    return read_json(out / "leave_one_out.json")


def reference_loss(corpus: Path, shares: dict[str, float], capability: str, seed: int) -> float:
    """Nats a token of a network that a plain loop trained."""
    rows = {name: TextRows(s, WINDOW, 0) for name, s in open_shards(corpus, "train").items()}
    plan = BatchPlan(seq_len=WINDOW, rows_per_step=4, micro_batch_size=1, seed=seed)
    batches = make_batches(rows, shares, plan, separate_documents=False)
    model = Transformer(PROXY, seed=seed)
    optimizers = make_optimizers(model, OPTIM)
    for step in range(OPTIM.num_steps):
        lr = lr_at(OPTIM, step)
        loop.train_step(model, optimizers, batches(step), next_token_loss, lr, 1.0, step)
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    source = next(name for name, domain in DOMAINS.items() if domain == capability)
    shard, taken, nats, tokens = open_shards(corpus, "probe")[source], 0, 0.0, 0
    for number in range(len(shard)):
        if taken >= CONFIG.probe_tokens:
            break
        ids = shard.document(number)[: CONFIG.probe_tokens - taken + 1]
        taken += len(ids)
        text = tokenizer.decode(ids[1:].tolist())
        given = torch.tensor([*tokenizer.document_start, *tokenizer.encode(text)])
        assert len(given) <= WINDOW
        with torch.no_grad():
            logits = model(given[None])[0, :-1]
        nats += float(F.cross_entropy(logits.float(), given[1:], reduction="sum"))
        tokens += len(given) - 1
    return nats / tokens


def test_an_effect_is_the_loss_without_a_source_less_that_with_all(compared, corpus):
    flat = dict.fromkeys(DOMAINS, 1 / 3)
    without = {"prose": 0.5, "scripts": 0.5, "sums": 0.0}
    differences = []
    for seed in (3, 1003):
        whole, less = (reference_loss(corpus, s, "maths", seed) for s in (flat, without))
        differences.append(less - whole)
    mean = sum(differences) / 2
    assert compared["effects"]["sums"]["maths"] == pytest.approx(mean, rel=1e-3)
    spread = abs(differences[0] - differences[1]) / 2**0.5
    assert compared["effects_deviation"]["sums"]["maths"] == pytest.approx(
        spread, rel=1e-2, abs=1e-4
    )
    every = compared["losses"]
    for source in DOMAINS:
        for capability in DOMAINS.values():
            effect = compared["effects"][source][capability]
            less, whole = every["without"][source][capability], every["all"][capability]
            assert effect == pytest.approx(less["nats_per_token"] - whole["nats_per_token"])
            assert set(whole) == {"nats_per_token", "bits_per_byte"}


def test_a_source_helps_its_own_capability_most(compared):
    """Each source of this corpus has words of its own."""
    for source, domain in DOMAINS.items():
        effects = compared["effects"][source]
        assert max(effects, key=lambda name: effects[name]) == domain and effects[domain] > 0


def test_repeated_rows_are_counted_and_a_network_that_does_not_learn_is_named(
    compared, corpus, tmp_path
):
    rows = {name: len(TextRows(s, WINDOW, 0)) for name, s in open_shards(corpus, "train").items()}
    # 8 steps of 4 rows, over the two sources that are there
    assert compared["passes"] == {name: 32 / 2 / count for name, count in rows.items()}
    assert all(count > 16 for count in rows.values()) and compared["warnings"] == []
    still = replace(CONFIG, optim=replace(OPTIM, lr=1e-9), rows_per_step=8, num_seeds=1)
    content = read_json(leave_one_out(still, tmp_path, corpus=corpus) / "leave_one_out.json")
    line = next(line for line in content["warnings"] if "did not learn" in line)
    assert "less than 0.1 nats" in line and all(name in line for name in DOMAINS.values())
    assert "effects_deviation" not in content
    repeated = [name for name, count in rows.items() if count < 32]
    line = next(line for line in content["warnings"] if "repeat what R1 does not" in line)
    assert repeated == [name for name in rows if name in line] == ["scripts", "sums"]


@pytest.mark.parametrize("calls", [3, 30, 60])
def test_an_interrupted_comparison_ends_with_the_same_effects(
    calls, compared, corpus, tmp_path, monkeypatch
):
    done = 0
    train_step = loop.train_step

    def failing(*arguments, **options):
        nonlocal done
        done += 1
        if done == calls:
            raise KeyboardInterrupt
        return train_step(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        leave_one_out(CONFIG, tmp_path, corpus=corpus)
    leave_one_out(CONFIG, tmp_path, corpus=corpus)
    assert done <= 2 * 4 * OPTIM.num_steps + 3
    assert read_json(tmp_path / "leave_one_out.json") == compared


def compared_on_ranks(out: Path, corpus: Path) -> None:
    leave_one_out(CONFIG, out, corpus=corpus)


def test_two_ranks_give_what_one_gives(compared, corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert on_ranks(2, tmp_path, compared_on_ranks, out, corpus) == [None] * 2
    together = read_json(out / "leave_one_out.json")
    for source, effects in compared["effects"].items():
        assert together["effects"][source] == pytest.approx(effects, abs=1e-3)


def test_a_corpus_of_one_source_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    write_json(corpus / "curation.json", {"sources": {"sums": {"domain": "maths"}}})
    for name in ("prose", "scripts"):
        (corpus / "shards" / name).rename(tmp_path / name)
    with pytest.raises(ValueError, match="has one source, sums; leaving it out would leave"):
        leave_one_out(CONFIG, tmp_path / "out", corpus=corpus)


def test_a_capability_without_text_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=0)
    with pytest.raises(ValueError, match="loo: 'code' has no probe text of scripts; raise probe"):
        leave_one_out(CONFIG, tmp_path / "out", corpus=corpus)


def test_a_source_that_serves_no_capability_is_named_and_measured_by_the_others(
    corpus, tmp_path, monkeypatch
):
    probes = tmp_path / "probes"

    def opened(corpus: Path, given: Path | None = None, sources: tuple[str, ...] = ()) -> ProbeSets:
        assert given == probes and not sources
        return ProbeSets({"maths": {"sums": open_shards(corpus, "probe")["sums"]}})

    monkeypatch.setattr(proxies, "open_probe_sets", opened)
    out = tmp_path / "out"
    config = replace(CONFIG, num_seeds=1, optim=replace(OPTIM, num_steps=2), min_fall=0.0)
    leave_one_out(config, out, corpus=corpus, probes=probes)
    content = read_json(out / "leave_one_out.json")
    assert content["capabilities"] == {"maths": ["sums"]}
    assert [set(effects) for effects in content["effects"].values()] == [{"maths"}] * 3
    (line,) = content["warnings"]
    assert line.startswith("no capability has probe text of prose, scripts: only")


def test_every_figure_of_a_mix_is_ranked_beside_the_effects(tmp_path):
    effects = {
        "a": {"code": 0.5, "maths": 0.0},
        "b": {"code": 0.25, "maths": 0.25},
        "c": {"code": 0.125, "maths": 0.875},
    }
    flat = dict.fromkeys(effects, 1 / 3)
    mixes = {
        "found": {
            "method": "by a law",
            "shares": {"a": 0.5, "b": 0.3, "c": 0.2},
            "bits_per_byte": {"code": 1.0, "maths": 2.0, "mean": 1.5},
            "scores": {
                "datainf": {"a": 1.0, "b": 2.0, "c": 3.0},
                "adam": {"a": 9.0, "b": 8.0, "c": 7.0},
            },
            "law": {"slopes": {"code": {"a": 9.0, "b": 5.0, "c": -1.0}, "law": {"a": 1.0}}},
            "density": {"a": 1.0, "b": 2.0, "c": 3.0},
        },
        "flat": {"method": "even", "shares": flat, "bits_per_byte": {"mean": 1.0}},
    }
    write_json(tmp_path / "mix.json", {"selected": "found", "shares": flat, "mixes": mixes})
    rows = rank_correlations(effects, tmp_path)
    values = {(row["mix"], row["figure"], row["capability"]): row["spearman"] for row in rows}
    # summed over capabilities the effects are a 0.5, b 0.5, c 1.0: two are a tie
    tied = 3**0.5 / 2
    assert values == {
        ("found", "shares", "all"): pytest.approx(-tied),
        ("found", "density", "all"): pytest.approx(tied),
        ("found", "law.slopes", "code"): pytest.approx(1.0),
        ("found", "law.slopes", "all"): pytest.approx(-tied),
        # two scores are no capabilities, and are not summed
        ("found", "scores.datainf", "all"): pytest.approx(tied),
        ("found", "scores.adam", "all"): pytest.approx(-tied),
        ("flat", "shares", "all"): None,
    }
    assert {row["sources"] for row in rows} == {3}
