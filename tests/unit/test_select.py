"""The selection: each piece has its own influence, whatever batch, rank or call scored it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import on_ranks
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data.batches import TextRows, collate
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.influence import influence, probe_directions
from pocketlm.data.shards import open_shard
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.files import read_json
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.runner.schedule import num_ranks
from pocketlm.stages import select as stage
from pocketlm.stages.select import SelectConfig, candidates, select

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
        monkeypatch.setattr(stage, "MAX_FILES", 2)
        select(CONFIG, out, corpus=corpus, model=model)
    else:
        assert on_ranks(4, tmp_path, select_on_ranks, out, corpus, model) == [None] * 4
    together, kept = outcome(out)
    alone, kept_alone = selected
    assert kept == kept_alone and together["kept"] == alone["kept"]
    for name in DOMAINS:
        assert together["influence"][name] == pytest.approx(alone["influence"][name], abs=2e-6)
    assert together["shares"] == pytest.approx(alone["shares"], rel=1e-4)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="compute_dtype 'half' is unknown; known: auto, float32"):
        SelectConfig(**{**vars(CONFIG), "compute_dtype": "half"})


def test_a_selection_beside_another_takes_all_the_ranks_of_its_part():
    assert num_ranks(CONFIG, num_stages=2, world_size=8) == 4
