"""Quality scores: a classifier of Hugging Face, and the light one that labels train."""

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pocketlm.data.probe_building.classifier import FILES, open_classifier
from pocketlm.data.probe_building.embedding import hashed_words, open_embedder
from pocketlm.data.probe_building.light_scorer import (
    LAYOUT_SCALES,
    PENALTIES,
    layout_of,
    read_labels,
    train_light_scorer,
)
from pocketlm.data.probe_building.quality import open_scorer

CPU = torch.device("cpu")
WORDS = ["the", "river", "stone", "water", "light", "house", "tree", "runs", "over", "under"]
LONGEST = 12


def write_classifier(folder: Path, outputs: int = 1) -> Path:
    """A BERT of random weights with so many outputs, which reads LONGEST tokens."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LONGEST,
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label={number: str(number) for number in range(outputs)},
        initializer_range=0.5,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_classifier(tmp_path_factory.mktemp("classifier"))


def test_a_classifier_gives_each_text_the_output_it_has_alone_and_counts_what_is_cut(classifier):
    texts = ["the river runs", "stone", " ".join(WORDS), " ".join(WORDS * 3)]
    scores, cut = open_classifier(str(classifier), CPU)(texts)
    network = transformers.BertForSequenceClassification.from_pretrained(classifier).eval()
    for text, score in zip(texts, scores, strict=True):
        ids = [2, *[4 + WORDS.index(word) for word in text.split()][: LONGEST - 2], 3]
        with torch.no_grad():
            alone = float(network(torch.tensor([ids])).logits)
        assert score == pytest.approx(alone, abs=1e-5)
    assert cut.tolist() == [False, False, False, True]  # ten words and two marks just fit
    assert len(set(np.round(scores, 4))) == 3  # what is cut is the third text


def test_a_scorer_of_another_kind_is_one_message(classifier, tmp_path):
    with pytest.raises(ValueError, match=r"3 outputs, of which none is the score"):
        open_classifier(str(write_classifier(tmp_path / "three", outputs=3)), CPU)
    for name, head in (("BertForMaskedLM", "BertForMaskedLM"), ("none", None)):
        folder = tmp_path / name
        shutil.copytree(classifier, folder)
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [head] if head else None
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="gives no score"):
            open_classifier(str(folder), CPU)
    with pytest.raises(ValueError, match="no such folder, and no id of the hub"):
        open_classifier(str(tmp_path / "nowhere" / "at" / "all"), CPU)


def test_weights_come_from_safetensors_and_none_is_left_to_chance(classifier, tmp_path):
    from safetensors.torch import load_file, save_file

    pickled = tmp_path / "pickled"
    shutil.copytree(classifier, pickled)
    tensors = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(tensors, pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"lacks the weights file model\.safetensors"):
        open_classifier(str(pickled), CPU)
    headless = tmp_path / "headless"
    shutil.copytree(classifier, headless)
    del tensors["classifier.weight"]
    save_file(tensors, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing, the first classifier\.weight"):
        open_classifier(str(headless), CPU)


def test_a_hub_id_is_fetched_weights_last_and_without_pickles_or_code(
    classifier, tmp_path, monkeypatch
):
    import huggingface_hub

    asked: list[list[str]] = []
    three = write_classifier(tmp_path / "three", outputs=3)

    def download(name: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(three if name == "them/three" else classifier)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    scores, _ = open_scorer("them/judge", "hashed", CPU)[0](["the river runs"])
    assert scores == open_classifier(str(classifier), CPU)(["the river runs"])[0]
    assert asked == [FILES, [*FILES, "model.safetensors"]]
    with pytest.raises(ValueError, match="3 outputs"):
        open_classifier("them/three", CPU)
    assert len(asked) == 3  # no weights of what cannot be a scorer


# ---- the light one ----


def labelled(count: int = 30) -> tuple[list[str], np.ndarray]:
    draw = np.random.default_rng(1)
    texts = [" ".join(draw.choice(WORDS, 12)) + "." for _ in range(count)]
    return texts, np.asarray([text.count("river") - text.count("stone") * 2.0 for text in texts])


def test_the_leave_one_out_error_is_that_of_regressions_without_each_text():
    texts, labels = labelled()
    scorer = train_light_scorer(texts, labels, hashed_words)
    layouts = np.asarray([layout_of(text) for text in texts])
    standard = (layouts - layouts.mean(0)) / np.maximum(layouts.std(0), 1e-3)
    words, centred = hashed_words(texts).astype(float), labels - labels.mean()
    errors = {}
    for scale, penalty in product(LAYOUT_SCALES, PENALTIES):
        features = np.hstack([words, scale * standard.clip(-5, 5)])
        residuals = []
        for i in range(len(texts)):
            rest = np.delete(features, i, 0)
            gram = rest @ rest.T + penalty * np.eye(len(rest))
            primal = rest.T @ np.linalg.solve(gram, np.delete(centred, i))
            residuals.append(features[i] @ primal - centred[i])
        errors[scale, penalty] = float(np.sqrt(np.mean(np.square(residuals))))
    best = min(errors, key=lambda key: errors[key])
    assert (scorer.layout_scale, scorer.penalty) == best
    assert scorer.error == pytest.approx(errors[best], rel=1e-6)
    assert scorer.error < 0.5 * scorer.spread
    # what it learned holds for texts that it never saw
    fresh = ["the river runs over the river.", "the stone house under the stone stone."]
    good, bad = scorer(fresh)[0]
    assert good > bad + 1


def test_layout_sees_lines_that_were_shuffled():
    lines = ["The river runs over", "the stone. Light falls", "on the house. The tree", "stands."]
    straight, shuffled = (
        "\n".join(lines[i] for i in order) for order in ((0, 1, 2, 3), (2, 0, 3, 1))
    )
    assert layout_of(straight)[6] == 0 < layout_of(shuffled)[6]
    assert layout_of("") and all(np.isfinite(layout_of("")))


def test_hashed_words_of_length_one_tell_texts_apart():
    same, other, near, empty = hashed_words(
        ["The river runs.", "Stone under light", "the river ran.", ""]
    )
    assert np.linalg.norm(same) == pytest.approx(1) and not empty.any()
    assert same @ near > 0.7 > 0.3 > abs(same @ other)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a", "label": 1}'] * 3, "3 labels, 1 of them different"),
        (['{"text": "a", "label": 1}'] * 20, "20 labels, 1 of them different"),
        (['{"text": "a"}'], r"labels\.jsonl:1: field label is missing"),
        (['{"text": "a", "label": "good"}'], "field label is the text 'good', a number is needed"),
        (["[1]"], 'not an object with "text" and "label"'),
    ],
)
def test_labels_that_teach_nothing_are_one_message(lines, message, tmp_path):
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.jsonl")


def test_labels_that_are_not_there_and_a_package_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file of labels"):
        open_scorer(str(tmp_path / "labels.jsonl"), "hashed", CPU)
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ValueError, match="pip install --no-deps wordllama, or set embedder=hashed"):
        open_embedder("wordllama")


def test_learned_words_put_a_synonym_near_its_word():
    pytest.importorskip("wordllama")
    embed = open_embedder("wordllama")
    big, large, river = embed(["a big house", "a large house", "the river runs"])
    assert big @ large > 0.8 > big @ river
