"""Ask-LLM: the probability of yes is that of a network whose answer can be computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import small
from tokenizers import normalizers

from pocketlm.data.probe_building.ask import (
    CAPABILITY_PROMPTS,
    CUE,
    NO,
    REASONING_PROMPT,
    YES,
    answer_ids,
    asker_of,
    next_logits,
    prompt_ids,
)
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

WORDS = "the river runs because water falls so stones move yes no Yes No answer"
PROMPT = "Read: {text}. Good?"
SHAPE = small(max_position_embeddings=96, initializer_range=0.3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([f"{WORDS} " * 30], 300)
    tokenizer.chat_template = None
    return tokenizer


def mean_network(seed: int = 0) -> Transformer:
    """One layer whose attention looks at all tokens alike, and no feed-forward part: the last state
    is the last token's embedding plus a matrix times the mean of all normed ones.
    """
    network = Transformer(replace(SHAPE, num_hidden_layers=1), seed=seed)
    weights = dict(network.named_parameters())
    with torch.no_grad():
        weights["model.layers.0.self_attn.q_proj.weight"].zero_()
        weights["model.layers.0.mlp.down_proj.weight"].zero_()
    return network.eval()


def by_hand(network: Transformer, ids: list[int], yes: list[int], no: list[int]) -> float:
    """P(yes) / (P(yes) + P(no)) in numpy."""
    weights = {name: w.double().numpy() for name, w in network.state_dict().items()}
    table = weights["model.embed_tokens.weight"]

    def normed(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + network.config.rms_norm_eps)

    block = "model.layers.0.self_attn"
    values = normed(table[ids]) @ weights[f"{block}.v_proj.weight"].T
    heads = np.tile(values.mean(0), network.config.num_attention_heads)  # one head of keys for all
    state = normed(table[ids[-1]] + weights[f"{block}.o_proj.weight"] @ heads)
    odds = np.exp(table @ state)
    return float(odds[yes].sum() / (odds[yes].sum() + odds[no].sum()))


def test_the_score_is_the_share_of_yes_among_the_spellings_of_both(tokenizer):
    network = mean_network()
    model = LanguageModel(network, tokenizer)
    yes, no = answer_ids(tokenizer, "probes")
    firsts = [{tokenizer.encode(word)[0] for word in words} for words in (YES, NO)]
    assert set(yes) == firsts[0] - firsts[1] and set(no) == firsts[1] - firsts[0]
    texts = ["the river runs", "stones move because water falls", "so"]
    scores, cut = asker_of(model, PROMPT, 50, "probes")(texts)
    for text, score in zip(texts, scores, strict=True):
        ids = [*tokenizer.document_start, *tokenizer.encode(f"Read: {text}. Good?{CUE}")]
        assert score == pytest.approx(by_hand(network, ids, yes, no), rel=1e-5)
    assert len(set(scores)) == 3 and not cut.any()


def test_texts_together_have_the_scores_they_have_alone_whatever_computes_them(tokenizer):
    class Other:
        """Another runtime, which gives the logits of one text."""

        def __init__(self, model: LanguageModel) -> None:
            self.logits = model.logits

    model = LanguageModel(Transformer(SHAPE, seed=1), tokenizer)
    rows = [tokenizer.encode(text) for text in ("river", "the river runs so", WORDS)]
    together = next_logits(model, rows)
    for row, logits in zip(rows, together, strict=True):
        np.testing.assert_allclose(logits, model.logits(row)[-1], atol=1e-4)
    np.testing.assert_allclose(together, next_logits(Other(model), rows), atol=1e-4)  # type: ignore[arg-type]


def test_a_chat_model_is_asked_in_a_user_s_turn(tokenizer):
    chatting = Tokenizer(tokenizer.backend, chat_template=CHATML)
    ids = prompt_ids(chatting, PROMPT, "so")
    turn = {"role": "user", "content": "Read: so. Good?"}
    assert ids == chatting.encode_chat([turn])
    assert prompt_ids(tokenizer, PROMPT, "so") != ids


def test_a_long_text_is_cut_to_a_number_of_tokens_or_to_what_the_context_leaves(tokenizer):
    model = LanguageModel(mean_network(), tokenizer)
    long = " ".join([WORDS] * 20)
    for most in (20, 1000):
        scores, cut = asker_of(model, PROMPT, most, "probes")([long, "so"])
        assert cut.tolist() == [True, False]
        room = min(most, 96 - len(prompt_ids(tokenizer, PROMPT, "")) - 8)
        text = tokenizer.decode(tokenizer.encode(long)[:room])
        assert scores[0] == pytest.approx(asker_of(model, PROMPT, most + 1, "x")([text])[0][0])
    # letters whose bytes are tokens of their own: cut in the middle, they read as longer
    asker_of(model, PROMPT, 1000, "probes")(["Ж語🜁" * 60])


def test_what_cannot_be_asked_is_one_message(tokenizer):
    model = LanguageModel(mean_network(), tokenizer)
    with pytest.raises(ValueError, match=r"^probes\.prompt: the prompt takes \d+ of the 96 tokens"):
        asker_of(model, f"{WORDS * 3} {{text}}", 50, "probes.prompt")
    marked = train_tokenizer([f"{WORDS} " * 30], 300)
    marked.backend.normalizer = normalizers.Prepend("§")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="begins yes and no with the same tokens"):
        answer_ids(marked, "probes")


def test_the_prompts_ask_for_yes_or_no_of_a_text(tmp_path: Path):
    for prompt in (REASONING_PROMPT, *CAPABILITY_PROMPTS.values()):
        assert prompt.count("{text}") == 1 and prompt.endswith("Answer yes or no.")
    assert len({REASONING_PROMPT, *CAPABILITY_PROMPTS.values()}) == 4
