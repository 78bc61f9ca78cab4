"""The selection: each piece has its own influence, whatever batch, rank or call scored it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import on_ranks
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data import score_files
from pocketlm.data.batches import TextRows, collate
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.datainf import score_directions
from pocketlm.data.influence import influence, probe_directions
from pocketlm.data.selection import stopped
from pocketlm.data.shards import open_shard
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.files import read_json
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.runner.schedule import num_ranks
from pocketlm.stages import select as stage
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.select import SelectConfig, candidates, padded, select
from pocketlm.train.optim import OptimConfig

SHAPE = small(vocab_size=VOCAB_SIZE, initializer_range=0.1)
CONFIG = SelectConfig(
    name="select",
    seq_len=24,
    candidate_tokens=900,
    probe_rows=6,
    batch_rows=4,
    budget_tokens=1000,
    max_epochs=4.0,
    seed=3,
    compute_dtype="float32",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(corpus, model)"""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("select")
    corpus = write_corpus(root / "corpus")
    (root / "model").mkdir()
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    save_checkpoint(root / "model", Transformer(SHAPE, seed=5), tokenizer)
    return corpus, root / "model"


def outcome(out: Path) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """(selection.json, the pieces kept of each source)"""
    shards = {name: open_shard(out, name, "train") for name in DOMAINS}
    kept = {
        name: [shard.document(i).tolist() for i in range(len(shard))]
        for name, shard in shards.items()
    }
    return read_json(out / "selection.json"), kept


@pytest.fixture(scope="module")
def selected(folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    corpus, model = folders
    out = tmp_path_factory.mktemp("selected")
    return outcome(select(CONFIG, out, corpus=corpus, model=model))


def test_a_piece_is_kept_where_its_mean_influence_on_all_probe_sets_is_positive(folders, selected):
    """Each piece by itself, and each capability by itself."""
    corpus, model = folders
    network, tokenizer = load_checkpoint(model)
    probes: dict[str, list[Batch]] = {}
    for name, shard in open_shards(corpus, "probe").items():
        rows = TextRows(shard, 24, tokenizer.eos_id)
        chosen = [rows[i] for i in range(6)]
        probes[DOMAINS[name]] = [collate(chosen[:4], False), collate(chosen[4:], False)]
    directions = probe_directions(network, dict(sorted(probes.items())))
    selection, kept = selected
    for name, shard in open_shards(corpus, "train").items():
        pieces = candidates(shard, CONFIG, name)
        scores = []
        for piece in pieces:
            ids = torch.from_numpy(piece.astype(np.int64))[None]
            batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])
            scores.append(float(influence(network, batch, directions).mean()))
        assert selection["influence"][name] == pytest.approx(scores, abs=2e-6)
        positive = [i for i, value in enumerate(scores) if value > 0]
        assert kept[name] == [pieces[i].tolist() for i in positive]
        assert selection["kept"][name]["of"] == len(pieces)
        sizes = [len(pieces[i]) for i in positive]
        density = sum(scores[i] * n for i, n in zip(positive, sizes, strict=True)) / sum(sizes)
        assert selection["density"][name] == pytest.approx(density, rel=1e-3)
    assert (selection["score"], selection["filter"], selection["stopped"]) == (
        "adam",
        "joint",
        None,
    )


def test_an_interrupted_selection_scores_no_batch_twice(folders, selected, tmp_path, monkeypatch):
    corpus, model = folders
    calls = 0

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return influence(*arguments)

    monkeypatch.setattr(stage, "influence", failing)
    with pytest.raises(KeyboardInterrupt):
        select(CONFIG, tmp_path, corpus=corpus, model=model)
    selection, kept = outcome(select(CONFIG, tmp_path, corpus=corpus, model=model))
    assert (selection, kept) == selected
    pieces = [selection["kept"][name]["of"] for name in DOMAINS]
    assert calls == sum(-(-count // 4) for count in pieces) + 1


def select_on_ranks(out: Path, corpus: Path, model: Path) -> None:
    select(CONFIG, out, corpus=corpus, model=model)


@pytest.mark.parametrize("max_files", [8192, 2])
def test_four_ranks_select_what_one_selects(max_files, folders, selected, tmp_path, monkeypatch):
    corpus, model = folders
    out = tmp_path / "out"
    out.mkdir()
    if max_files == 2:  # fewer groups of batches than ranks
        monkeypatch.setattr(score_files, "MAX_FILES", 2)
        select(CONFIG, out, corpus=corpus, model=model)
    else:
        assert on_ranks(4, tmp_path, select_on_ranks, out, corpus, model) == [None] * 4
    together, kept = outcome(out)
    alone, kept_alone = selected
    assert kept == kept_alone and together["kept"] == alone["kept"]
    for name in DOMAINS:
        assert together["influence"][name] == pytest.approx(alone["influence"][name], abs=2e-6)
    assert together["shares"] == pytest.approx(alone["shares"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compute_dtype": "half"}, "compute_dtype 'half' is unknown; known: auto, float32"),
        ({"score": "newton"}, "score 'newton' is unknown; known: datainf, adam"),
        ({"filter": "all"}, "filter 'all' is unknown; known: joint, per_capability"),
        ({"shares_by": "size"}, "shares_by 'size' is unknown; known: density, kept"),
        ({"stop_on": "rounds"}, "stop_on 'rounds' is unknown; known: mass, samples"),
        ({"hessian_rows": 0}, "hessian_rows 0 must be at least 1"),
        ({"damping": 0.0}, "damping 0.0 positive"),
        ({"stop_below": 1.5}, "stop_below 1.5 a share from 0 to 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


# ---- DataInf, the filter per capability, and rounds ----

DATAINF = replace(CONFIG, score="datainf", hessian_rows=7, damping=0.2, filter="per_capability")


@pytest.fixture(scope="module")
def by_datainf(folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    corpus, model = folders
    return outcome(select(DATAINF, tmp_path_factory.mktemp("datainf"), corpus=corpus, model=model))


def test_by_datainf_and_per_capability_a_piece_is_kept_where_its_own_probes_ask_for_it(
    folders, by_datainf
):
    corpus, model = folders
    network, tokenizer = load_checkpoint(model)
    probes: dict[str, list[Batch]] = {}
    for name, shard in open_shards(corpus, "probe").items():
        rows = TextRows(shard, 24, tokenizer.eos_id)
        chosen = [rows[i] for i in range(6)]
        probes[DOMAINS[name]] = [collate(chosen[:4], False), collate(chosen[4:], False)]
    probes = dict(sorted(probes.items()))
    shards = open_shards(corpus, "train")
    first = [candidates(shard, CONFIG, name)[:7] for name, shard in shards.items()]
    samples = [padded([piece], 0) for pieces in first for piece in pieces]
    directions = score_directions("datainf", network, probes, samples, damping=0.2)
    selection, kept = by_datainf
    for name, shard in shards.items():
        pieces = candidates(shard, CONFIG, name)
        column = list(probes).index(DOMAINS[name])
        scores = [
            float(influence(network, padded([piece], 0), directions)[0, column]) for piece in pieces
        ]
        assert selection["influence"][name] == pytest.approx(scores, rel=1e-3, abs=1)
        assert max(map(abs, scores)) > 100
        assert kept[name] == [
            piece.tolist() for piece, score in zip(pieces, scores, strict=True) if score > 0
        ]
        figures = selection["capabilities"][DOMAINS[name]]
        assert figures["sources"] == [name]
        assert figures["documents"] == {"kept": len(kept[name]), "of": len(pieces)}
        assert figures["tokens"]["of"] == sum(map(len, pieces))
        assert 0 < figures["positive_mass"]["after"] <= figures["positive_mass"]["before"]


def datainf_on_ranks(out: Path, corpus: Path, model: Path) -> None:
    select(DATAINF, out, corpus=corpus, model=model)


def test_four_ranks_select_by_datainf_what_one_selects(folders, by_datainf, tmp_path):
    corpus, model = folders
    out = tmp_path / "out"
    out.mkdir()
    assert on_ranks(4, tmp_path, datainf_on_ranks, out, corpus, model) == [None] * 4
    together, kept = outcome(out)
    alone, kept_alone = by_datainf
    assert kept == kept_alone and together["kept"] == alone["kept"]
    assert together["shares"] == pytest.approx(alone["shares"], rel=1e-3)


MID = PretrainConfig(
    name="mid",
    optim=OptimConfig(
        lr=1e-3, num_steps=2, warmup_steps=0, final_lr_share=0.0, compute_dtype="float32"
    ),
    seq_len=24,
    rows_per_step=2,
    micro_batch_size=2,
    seed=1,
)


def test_rounds_go_on_until_a_selection_stops_and_then_the_model_passes_through_unchanged(
    folders, tmp_path, capfd
):
    """Co-evolution as a recipe calls it; the second selection asks for more than there is."""
    corpus, model = folders
    weights = (model / "model.safetensors").read_bytes()
    chosen = None
    for turn, stop_below in ((1, 0.01), (2, 1.0), (3, 0.01)):
        selected, trained = tmp_path / f"select{turn}", tmp_path / f"mid{turn}"
        selected.mkdir()
        trained.mkdir()
        config = replace(CONFIG, name=f"select{turn}", stop_below=stop_below)
        chosen = select(config, selected, corpus=corpus, model=model, previous=chosen)
        model = pretrain(
            replace(MID, name=f"mid{turn}"), trained, corpus=corpus, model=model, selection=chosen
        )
        before, weights = weights, (model / "model.safetensors").read_bytes()
        assert (weights == before) == (turn > 1)
        assert (stopped(chosen) is None) == (turn == 1)
    first, second, third = (
        read_json(tmp_path / f"select{n}" / "selection.json") for n in (1, 2, 3)
    )
    assert first["positive"]["mass"] > 0.01 and sum(first["shares"].values()) == pytest.approx(1)
    assert second["shares"] == {} and second["kept"]["sums"]["of"] > 0
    assert third["stopped"] == second["stopped"] and third["kept"] == {}
    assert "below stop_below 100.0%" in second["stopped"]
    assert all(len(open_shard(tmp_path / "select3", name, "train")) == 0 for name in DOMAINS)
    words = capfd.readouterr().err
    assert "maths: " in words and "pieces kept, with" in words
    assert "mid3: not trained, mid2 goes on unchanged. select2:" in words


def test_a_stopped_selection_has_nothing_to_pass_on_to_a_new_network(folders, tmp_path):
    corpus, model = folders
    chosen = select(replace(CONFIG, stop_below=1.0), tmp_path, corpus=corpus, model=model)
    with pytest.raises(ValueError, match=r"mid: nothing is trained \(select: .* no input `model`"):
        pretrain(replace(MID, model=SHAPE), tmp_path, corpus=corpus, selection=chosen)


def test_a_selection_beside_another_takes_all_the_ranks_of_its_part():
    assert num_ranks(CONFIG, num_stages=2, world_size=8) == 4
