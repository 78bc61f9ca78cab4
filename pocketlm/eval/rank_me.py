"""RankMe: how many directions a model's last hidden states use (Garrido et al. 2023; R1, appendix
B, as a forecast of what mid-training will reach).

Shapes: N tokens, D hidden
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketlm.inference.runtime import Runtime
from pocketlm.inference.torch_runtime import LanguageModel

EPSILON = 1e-7  # added to each share of the singular values, as in RankMe's paper


def rank_me(states: Tensor) -> float:
    """exp of the entropy of the singular values of states [N, D], as shares of their sum: from 1,
    all in one direction, to the smaller of N and D.
    """
    values = torch.linalg.svdvals(states.double())
    shares = values / values.sum() + EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


@torch.inference_mode()
def rank_of_states(model: Runtime, documents: Sequence[str], window: int) -> float:
    """RankMe of the last normed hidden states of all tokens of the documents, each read by itself
    and up to `window` tokens.

    ValueError: a runtime that shows no hidden states, or documents without a token.
    """
    if not isinstance(model, LanguageModel):
        raise ValueError(
            "RankMe reads hidden states, which only a checkpoint in our own network shows; leave "
            "exported files and runtime=transformers out, or set rank_tokens to 0"
        )
    states = [
        model.model.hidden(torch.tensor([ids], device=model.device), None)[0].float()
        for text in documents
        if (ids := [*model.tokenizer.document_start, *model.tokenizer.encode(text)][:window])
    ]
    if not states:
        raise ValueError("no text to measure RankMe on: the documents are empty")
    return rank_me(torch.cat(states))
