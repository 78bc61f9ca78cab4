"""Every tensor of an answer is on the device of the weights, tested without a GPU.

Two ways: nothing may depend on the ambient default device; and on the meta device, which computes
shapes alone, a tensor left on the processor is refused as a GPU refuses it.
"""

from dataclasses import replace

import pytest
import torch
from shapes import small

from pocketlm.eval.agreement import Passage, agreement
from pocketlm.eval.perplexity import bits_per_byte
from pocketlm.eval.retrieval import find_needles
from pocketlm.inference.open import fastest_device, open_model
from pocketlm.inference.sampling import GREEDY, Sampling
from pocketlm.inference.torch_runtime import PREFILL_TOKENS, LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

CONFIG = small(
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=1024,
    initializer_range=0.2,
    layer_types=(LOCAL, GLOBAL, LOCAL),
    sliding_window=8,
)
PROMPTS = [
    torch.randint(300, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (20, 1, 7, PREFILL_TOKENS)  # of several groups, and longer than the window
]
DRAWN = Sampling(temperature=1.0, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)


def answers(model: LanguageModel, sampling: Sampling) -> list[list[int]]:
    return model.generate(PROMPTS, max_new_tokens=12, stop_ids={5}, sampling=sampling)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_answers_do_not_depend_on_the_default_device(sampling, int8_cache, tokenizer) -> None:
    model = LanguageModel(Transformer(CONFIG), tokenizer, int8_cache=int8_cache)
    expected = answers(model, sampling)
    with torch.device("meta"):
        assert answers(model, sampling) == expected
        assert list(model.stream(PROMPTS[0], max_new_tokens=4, stop_ids=set()))
    assert len(set(expected[0])) > 3


def test_what_is_measured_does_not_depend_on_the_default_device(tokenizer) -> None:
    model = LanguageModel(Transformer(CONFIG), tokenizer)
    other = LanguageModel(Transformer(CONFIG, seed=1), tokenizer)
    passages = [Passage(ids=PROMPTS[0], prompt=4)]
    documents = ["the lazy dog jumps over the quick brown fox"]

    def figures() -> list[object]:
        return [
            agreement(model, other, passages),
            bits_per_byte(model, documents, 16),
            find_needles(model, [(PROMPTS[0], "fox")]),
            model.logits(PROMPTS[2]).tolist(),
            model.log_probs(PROMPTS[0]).tolist(),
        ]

    expected = figures()
    with torch.device("meta"):
        assert figures() == expected


@pytest.mark.parametrize("int8_cache", [False, True])
def test_a_whole_answer_runs_where_the_weights_are(int8_cache, tokenizer, monkeypatch) -> None:
    with torch.device("meta"):
        network = Transformer(CONFIG)
    model = LanguageModel(network, tokenizer, int8_cache=int8_cache)
    assert model.device.type == "meta"
    # a meta tensor has no values to look at
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: False)
    steps = iter(range(100))
    # the first answer ends in the third step, so that its row leaves the batch
    monkeypatch.setattr(
        torch.Tensor,
        "tolist",
        lambda self: [5 if next(steps) == 8 else 7 for _ in range(self.shape[0])],
    )
    lengths = list(map(len, answers(model, replace(GREEDY, repetition_penalty=1.3))))
    assert lengths == [2, 12, 12, 12]


def test_positions_on_another_device_than_the_weights_are_refused(tokenizer, monkeypatch) -> None:
    """So the test above can fail."""
    with torch.device("meta"):
        model = LanguageModel(Transformer(CONFIG), tokenizer)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: False)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: [7] * self.shape[0])
    assert answers(model, GREEDY) == [[7] * 12] * 4
    monkeypatch.setattr(model, "_ids", torch.tensor)
    with pytest.raises(RuntimeError, match="device"):
        answers(model, GREEDY)


def test_a_folder_is_opened_on_the_device_asked_for_and_else_on_a_gpu_where_there_is_one(
    tokenizer, tmp_path, monkeypatch
):
    save_checkpoint(tmp_path, Transformer(replace(CONFIG, vocab_size=300), seed=1), tokenizer)
    asked = open_model(tmp_path, device=torch.device("meta"))
    assert isinstance(asked, LanguageModel) and asked.device.type == "meta"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastest_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fastest_device() == torch.device("cuda")
