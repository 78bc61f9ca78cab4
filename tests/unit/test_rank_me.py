"""RankMe: known matrices, and what it reads of a model."""

import pytest
import torch
from shapes import small

from pocketlm.eval.rank_me import rank_me, rank_of_states
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from tests.unit.silent_runtime import SilentRuntime

TEXTS = ["the rain falls on the road", "the cat sits by the door in the sun"]


def test_directions_of_equal_weight_count_as_many_as_they_are() -> None:
    states = torch.linalg.qr(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert rank_me(states) == pytest.approx(6.0, rel=1e-4)
    assert rank_me(states[:, :1].expand(40, 6)) == pytest.approx(1.0, rel=1e-4)


def test_it_is_the_entropy_of_the_singular_values_shares() -> None:
    # shares 1/2, 1/4, 1/4: exp of 1.5 ln 2
    states = torch.zeros(9, 3)
    states[0, 0], states[1, 1], states[2, 2] = 4.0, 2.0, 2.0
    assert rank_me(states) == pytest.approx(2**1.5, rel=1e-4)
    assert rank_me(7 * states) == pytest.approx(rank_me(states), rel=1e-9)


def test_the_states_of_all_tokens_are_read_up_to_the_window() -> None:
    tokenizer = train_tokenizer([" ".join(TEXTS)] * 3, 290)
    network = Transformer(small(vocab_size=tokenizer.vocab_size, max_position_embeddings=64))
    model = LanguageModel(network, tokenizer)
    with torch.no_grad():
        states = torch.cat(
            [
                network.hidden(
                    torch.tensor([[*tokenizer.document_start, *tokenizer.encode(text)][:5]]), None
                )[0]
                for text in TEXTS
            ]
        )
    assert rank_of_states(model, TEXTS, 5) == pytest.approx(rank_me(states), rel=1e-6)
    with pytest.raises(ValueError, match="the documents are empty"):
        rank_of_states(model, [], 5)
    with pytest.raises(ValueError, match="only a checkpoint in our own network shows"):
        rank_of_states(SilentRuntime(), TEXTS, 5)
