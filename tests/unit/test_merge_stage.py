"""The merge stage: what it reports of a branch is that branch's own loss, and what it writes is the
best it saw.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from rank_processes import on_ranks
from shapes import small
from tokenizers import normalizers

from pocketlm.data.shards import write_shard
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.files import read_json, write_json
from pocketlm.model.merging import average
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.merge import (
    MergeConfig,
    domain_losses,
    losses_and_slopes,
    merge,
    validation_text,
)
from pocketlm.train.losses import next_token_loss
from tests.unit.small_corpus import write_corpus

SHAPE = small(initializer_range=0.2)
CONFIG = MergeConfig(name="merged", resolution=4, seq_len=32, validation_rows=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(corpus, branch a, branch b)"""
    root = tmp_path_factory.mktemp("merge")
    tokenizer = train_tokenizer(
        ["the quick brown fox jumps over the lazy dog while rain falls on the plain " * 40], 300
    )
    corpus = root / "corpus"
    for number, name in enumerate(("sums", "prose")):
        folder = corpus / "shards" / name
        folder.mkdir(parents=True)
        ids = torch.randint(
            3, 300, (6, 40), generator=torch.Generator().manual_seed(number)
        ).tolist()
        write_shard(folder, "validation", [[0, *row] for row in ids], vocab_size=300)
    write_json(
        corpus / "curation.json",
        {"sources": {"sums": {"domain": "maths"}, "prose": {"domain": "knowledge"}}},
    )
    (corpus / "tokenizer").mkdir()
    tokenizer.save(corpus / "tokenizer")
    for seed, name in ((1, "a"), (2, "b")):
        (root / name).mkdir()
        save_checkpoint(root / name, Transformer(replace(SHAPE), seed=seed), tokenizer)
    return corpus, root / "a", root / "b"


def losses_of(state: dict[str, torch.Tensor], text: dict[str, list[Batch]]) -> dict[str, float]:
    """Of each domain, and their plain mean."""
    model = Transformer(SHAPE)
    model.load_state_dict(state)
    losses = domain_losses(model, text)
    return losses | {"mean": sum(losses.values()) / len(losses)}


def test_the_search_scores_each_weighted_average_as_it_is(folders, tmp_path):
    corpus, a, b = folders
    merge(CONFIG, tmp_path, corpus=corpus, models=[a, b])
    report = read_json(tmp_path / "merge.json")
    chosen_on, _ = validation_text(CONFIG, Path(corpus), eos_id=0)
    states = [load_checkpoint(path)[0].state_dict() for path in (a, b)]
    for row in report["search"]:
        expected = losses_of(average(states, (row["weights"]["a"], row["weights"]["b"])), chosen_on)
        assert row["loss"] == pytest.approx(expected, rel=1e-6)
    assert len({round(row["loss"]["mean"], 6) for row in report["search"]}) == 5


def test_the_best_of_the_search_is_written_and_reported_on_other_rows(folders, tmp_path):
    corpus, a, b = folders
    trunk = tmp_path / "trunk"
    trunk.mkdir()
    save_checkpoint(trunk, Transformer(SHAPE, seed=3), load_checkpoint(a)[1])
    merge(CONFIG, tmp_path, corpus=corpus, models=[a, b], trunk=trunk)
    report = read_json(tmp_path / "merge.json")
    chosen_on, reported_on = validation_text(CONFIG, Path(corpus), eos_id=0)
    written = load_checkpoint(tmp_path)[0].state_dict()
    lowest = min(row["loss"]["mean"] for row in report["search"])
    assert losses_of(written, chosen_on)["mean"] == pytest.approx(lowest, rel=1e-6)
    states = {path.name: load_checkpoint(path)[0].state_dict() for path in (a, b, trunk)}
    expected = {
        "best": losses_of(written, reported_on),
        "uniform": losses_of(average([states["a"], states["b"]], (0.5, 0.5)), reported_on),
        "trunk": losses_of(states["trunk"], reported_on),
    }
    for name, losses in expected.items():
        assert report[name] == pytest.approx(losses, rel=1e-6), name
    for name in ("a", "b"):
        assert report["single"][name] == pytest.approx(losses_of(states[name], reported_on))
    assert report["chosen_on"] == report["reported_on"] == {"knowledge": 4, "maths": 4}


def test_no_token_of_the_rows_that_weights_are_chosen_on_is_reported_on(tmp_path):
    """Documents that a row's end cuts, and a long one that is cut itself."""
    folder = tmp_path / "shards" / "prose"
    folder.mkdir(parents=True)
    lengths = [20, 30, 25, 200, 7, 9, 40, 12, 33, 18, 27]
    numbers = iter(range(sum(lengths)))  # each token of the split is another one
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    write_shard(folder, "validation", documents, vocab_size=sum(lengths))
    write_json(tmp_path / "curation.json", {"sources": {"prose": {"domain": "knowledge"}}})
    for rows in (1, 2, 3, 5):
        parts = validation_text(replace(CONFIG, validation_rows=rows), tmp_path, eos_id=0)
        chosen, reported = (torch.cat([b.input_ids for b in part["knowledge"]]) for part in parts)
        assert len(chosen) == rows and 1 <= len(reported) <= rows
        assert not set(chosen.flatten().tolist()) & set(reported.flatten().tolist()) - {0}
    with pytest.raises(ValueError, match="'knowledge' has too little validation text"):
        validation_text(replace(CONFIG, seq_len=500), tmp_path, eos_id=0)


def test_slopes_are_the_derivatives_of_the_loss_along_each_branchs_weight(folders):
    corpus, *branches = folders
    states = [load_checkpoint(path)[0].state_dict() for path in branches]
    chosen_on, _ = validation_text(CONFIG, Path(corpus), eos_id=0)
    config = replace(CONFIG, domain_weights={"maths": 3.0, "knowledge": 1.0})
    target = Transformer(SHAPE)

    def mean(weights: tuple[float, float]) -> float:
        losses = losses_of(average(states, weights), chosen_on)
        return (3 * losses["maths"] + losses["knowledge"]) / 4

    target.load_state_dict(average(states, (0.3, 0.7)))
    losses, slopes = losses_and_slopes(config, target, states, chosen_on)
    assert losses["mean"] == pytest.approx(mean((0.3, 0.7)), rel=1e-6)
    for number, slope in enumerate(slopes):
        up, down = ([0.3, 0.7], [0.3, 0.7])
        up[number] += 5e-3
        down[number] -= 5e-3
        measured = (mean((up[0], up[1])) - mean((down[0], down[1]))) / 1e-2
        assert slope == pytest.approx(measured, rel=0.02, abs=1e-3)


def trained_branches(folders: tuple[Path, Path, Path], root: Path, count: int) -> list[Path]:
    """Branches of one trunk, each trained a little on a part of the tokens of its own."""
    _, trunk, _ = folders
    paths = []
    for number in range(count):
        model, tokenizer = load_checkpoint(trunk)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(number)
        for _ in range(12):
            ids = torch.randint(3 + 60 * number, 150 + 60 * number, (4, 33), generator=generator)
            batch = Batch(input_ids=ids[:, :-1] % 300, labels=ids[:, 1:] % 300)
            (next_token_loss(model, batch) / batch.num_labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        paths.append(root / f"branch{number}")
        paths[-1].mkdir()
        save_checkpoint(paths[-1], model, tokenizer)
    return paths


@pytest.mark.parametrize("count", [2, 3])
def test_slopes_find_what_a_fine_grid_finds(count, folders, tmp_path):
    models = trained_branches(folders, tmp_path, count)
    reports = {}
    for search in ("grid", "slopes"):
        config = replace(CONFIG, search=search, resolution=20 if count == 2 else 10, num_steps=25)
        (tmp_path / search).mkdir()
        merge(config, tmp_path / search, corpus=folders[0], models=models)
        reports[search] = read_json(tmp_path / search / "merge.json")
    assert reports["slopes"]["method"] == "slopes" and reports["grid"]["method"] == "grid"
    lowest, losses = {}, {}
    for search, report in reports.items():
        losses[search] = [row["loss"]["mean"] for row in report["search"]]
        lowest[search] = min(losses[search])
    assert len(losses["slopes"]) <= 25 + count
    spread = max(losses["grid"]) - lowest["grid"]
    assert lowest["slopes"] <= lowest["grid"] + 0.01 * spread


def test_the_uniform_average_alone_is_written_and_nothing_is_searched(folders, tmp_path):
    corpus, a, b = folders
    merge(replace(CONFIG, search="uniform"), tmp_path, corpus=corpus, models=[a, b])
    report = read_json(tmp_path / "merge.json")
    assert report["weights"] == {"a": 0.5, "b": 0.5} and len(report["search"]) == 1
    states = [load_checkpoint(path)[0].state_dict() for path in (a, b)]
    written = load_checkpoint(tmp_path)[0].state_dict()
    for name, tensor in average(states, (0.5, 0.5)).items():
        assert torch.equal(written[name], tensor), name


def test_weights_may_be_chosen_on_the_probe_text(folders, tmp_path):
    write_corpus(tmp_path / "corpus")
    parts = [
        validation_text(replace(CONFIG, split=split), tmp_path / "corpus", eos_id=0)[0]
        for split in ("validation", "probe")
    ]
    first, second = (part["maths"][0].input_ids for part in parts)
    assert first.shape == second.shape and not torch.equal(first, second)
    with pytest.raises(ValueError, match="split 'train' is unknown"):
        replace(CONFIG, split="train")


def test_more_than_three_models_are_merged_by_slopes_and_the_grid_is_refused(folders, tmp_path):
    models = trained_branches(folders, tmp_path, 5)
    (tmp_path / "out").mkdir()
    merge(replace(CONFIG, num_steps=8), tmp_path / "out", corpus=folders[0], models=models)
    report = read_json(tmp_path / "out" / "merge.json")
    assert report["method"] == "slopes" and len(report["search"]) <= 8 + 5
    assert sum(report["weights"].values()) == pytest.approx(1)
    uniform = next(row for row in report["search"] if len(set(row["weights"].values())) == 1)
    assert min(row["loss"]["mean"] for row in report["search"]) < uniform["loss"]["mean"]
    config = replace(CONFIG, search="grid", resolution=40)
    with pytest.raises(ValueError, match="lower resolution, or set search=slopes"):
        merge(config, tmp_path / "out", corpus=folders[0], models=models)


def merge_on_ranks(out: Path, corpus: Path, models: list[Path]) -> None:
    for search in ("grid", "slopes"):
        (out / search).mkdir(exist_ok=True)
        config = replace(CONFIG, search=search, num_steps=6)
        merge(config, out / search, corpus=corpus, models=models)


def test_three_ranks_merge_what_one_merges(folders, tmp_path):
    corpus, *models = folders
    outs = {1: tmp_path / "alone", 3: tmp_path / "together"}
    for out in outs.values():
        out.mkdir()
    merge_on_ranks(outs[1], corpus, models)
    assert on_ranks(3, tmp_path, merge_on_ranks, outs[3], corpus, models) == [None] * 3
    for search in ("grid", "slopes"):
        alone, together = (read_json(out / search / "merge.json") for out in outs.values())
        assert together["weights"] == pytest.approx(alone["weights"], rel=1e-4)
        for name in ("best", "uniform"):
            assert together[name] == pytest.approx(alone[name], rel=1e-5)
        losses = [[row["loss"]["mean"] for row in r["search"]] for r in (alone, together)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_two_folders_of_one_name_and_quantized_models_are_refused(folders, tmp_path):
    corpus, a, _ = folders
    with pytest.raises(ValueError, match="different names"):
        merge(CONFIG, tmp_path, corpus=corpus, models=[a, a])
    quantized = tmp_path / "int4"
    quantized.mkdir()
    model, tokenizer = load_checkpoint(a)
    save_checkpoint(quantized, prepare(model, CPU), tokenizer)
    with pytest.raises(ValueError, match="is quantized"):
        merge(CONFIG, tmp_path, corpus=corpus, models=[a, quantized])


def respell(change: Callable[[dict], None]) -> Callable[[Tokenizer], Tokenizer]:
    """A tokenizer whose tokenizer.json was changed."""

    def changed(tokenizer: Tokenizer) -> Tokenizer:
        content = json.loads(tokenizer.backend.to_str())
        change(content)
        return Tokenizer(
            tokenizers.Tokenizer.from_str(json.dumps(content)),
            chat_template=tokenizer.chat_template,
        )

    return changed


def swap_words(content: dict) -> None:
    vocab = content["model"]["vocab"]
    vocab["q"], vocab["x"] = vocab["x"], vocab["q"]


def drop_merge(content: dict) -> None:
    content["model"]["merges"].pop()


def lower(tokenizer: Tokenizer) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.normalizer = normalizers.Lowercase()
    return Tokenizer(backend)


def strip_turns(content: dict) -> None:
    next(token for token in content["added_tokens"] if token["content"] == "<|im_start|>")[
        "rstrip"
    ] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (respell(swap_words), r"different words: 'q' is \d+ and \d+, 'x' is \d+ and \d+"),
        (respell(drop_merge), "different ways to cut text into words: the model's merges"),
        (lower, "different ways to cut text into words: normalizer"),
        (respell(strip_turns), "the added token '<|im_start|>'".replace("|", r"\|")),
        (
            lambda t: Tokenizer(t.backend, eos_token="<|im_start|>"),
            r"special tokens: eos_id is 0 .* and 1",
        ),
    ],
)
def test_models_that_mean_other_things_by_their_ids_are_not_merged(
    change, message, folders, tmp_path
):
    corpus, a, b = folders
    model, tokenizer = load_checkpoint(b)
    other = tmp_path / "other"
    other.mkdir()
    save_checkpoint(other, model, change(tokenizer))
    with pytest.raises(ValueError, match=message):
        merge(CONFIG, tmp_path / "out", corpus=corpus, models=[a, other])


def chatting(folder: Path, branch: Path, template: str) -> Path:
    """A copy of a branch that has a chat template."""
    model, tokenizer = load_checkpoint(branch)
    folder.mkdir()
    save_checkpoint(folder, model, Tokenizer(tokenizer.backend, chat_template=template))
    return folder


def test_a_template_that_one_model_alone_has_is_kept_and_two_are_refused(folders, tmp_path, capsys):
    corpus, a, b = folders
    one = chatting(tmp_path / "one", b, CHATML)
    two = chatting(tmp_path / "two", a, CHATML.replace("assistant", "model"))
    (tmp_path / "out").mkdir()
    merge(CONFIG, tmp_path / "out", corpus=corpus, models=[a, one])
    assert load_checkpoint(tmp_path / "out")[1].chat_template == CHATML
    assert read_json(tmp_path / "out" / "merge.json")["chat_template_of"] == "one"
    assert "the merged one has that of one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="two and one have different chat templates"):
        merge(CONFIG, tmp_path, corpus=corpus, models=[two, one])


def test_a_corpus_of_other_tokens_and_models_of_other_shapes_are_refused_by_what_differs(
    folders, tmp_path
):
    corpus, a, b = folders
    tokenizer = load_checkpoint(a)[1]
    elsewhere = tmp_path / "corpus" / "tokenizer"
    elsewhere.mkdir(parents=True)
    respell(swap_words)(tokenizer).save(elsewhere)
    with pytest.raises(ValueError, match=r"is not the one .* was encoded with: 'q' is"):
        merge(CONFIG, tmp_path / "out", corpus=elsewhere.parent, models=[a, b])
    longer = tmp_path / "longer"
    longer.mkdir()
    save_checkpoint(longer, Transformer(replace(SHAPE, rope_theta=5e5)), tokenizer)
    with pytest.raises(ValueError, match=r"different shapes \(rope_theta 10000.0 and 500000.0\)"):
        merge(CONFIG, tmp_path / "out", corpus=corpus, models=[a, longer])
