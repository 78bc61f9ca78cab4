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
from tokenizers import normalizers

from pocketlm.data.shards import write_shard
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.files import read_json, write_json
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer
from pocketlm.stages.merge import MergeConfig, _validation, average, domain_losses, merge

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=1e4,
    initializer_range=0.2,
)
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


def test_the_search_scores_each_weighted_average_as_it_is(folders, tmp_path):
    corpus, a, b = folders
    merge(CONFIG, tmp_path, corpus=corpus, models=[a, b])
    report = read_json(tmp_path / "merge.json")
    validation = _validation(CONFIG, Path(corpus), eos_id=0)
    states = [load_checkpoint(path)[0].state_dict() for path in (a, b)]
    for row in report["search"]:
        model = Transformer(SHAPE)
        model.load_state_dict(average(states, (row["weights"]["a"], row["weights"]["b"])))
        assert row["loss"] == pytest.approx(domain_losses(model, validation, None), rel=1e-6)
    assert len({round(row["loss"]["mean"], 6) for row in report["search"]}) == len(report["search"])
    for name, path in (("a", a), ("b", b)):
        own = domain_losses(load_checkpoint(path)[0], validation, None)
        assert report["single"][name] == pytest.approx(own, rel=1e-6)


def test_the_best_of_the_search_is_what_is_written(folders, tmp_path):
    corpus, a, b = folders
    merge(CONFIG, tmp_path, corpus=corpus, models=[a, b])
    report = read_json(tmp_path / "merge.json")
    written = domain_losses(
        load_checkpoint(tmp_path)[0], _validation(CONFIG, Path(corpus), eos_id=0), None
    )
    assert written == pytest.approx(report["best"], rel=1e-6)
    assert written["mean"] == pytest.approx(
        min(row["loss"]["mean"] for row in report["search"]), rel=1e-6
    )


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
