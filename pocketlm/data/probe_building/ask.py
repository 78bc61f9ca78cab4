"""Ask-LLM (Sachdeva et al. 2024, arXiv 2402.09668): a language model is asked whether a text
belongs in a set, and the probability of "yes" against "no" as its next word is the text's score.

Which model and which words R1 used is not found; both are arguments. Shapes: N texts, T tokens,
V vocabulary
"""

from collections.abc import Sequence

import numpy as np
import torch

from pocketlm.data.probe_building.scores import Scorer, Scores
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import Tokenizer

PLACE = "{text}"  # in a prompt, where the text comes
# spellings of the answer, whose first tokens are added up (our choice): a chat model begins its
# turn without a space, a base model goes on after "Answer:" with one
YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
# R1's prompts are not found: ours. In the first place whether a text shows reasoning at all
REASONING_PROMPT = """###
{text}
###

Does the text between the ### belong in a small set of texts that test how well a language model \
reasons? It does if it is well formed, can be understood by itself, and explains, derives, argues \
or solves something step by step. It does not if it is a menu, a list of links, a licence, an \
advertisement, or lines in disorder. Answer yes or no."""
CAPABILITY_PROMPTS = {
    name: """###
{text}
###

Does the text between the ### belong in a small set of texts that test """
    + f"{what}? Answer yes or no."
    for name, what in {
        "code": "how well a language model understands and writes computer programs",
        "maths": "how well a language model solves mathematical problems and follows proofs",
        "knowledge": "how much a language model knows of science, history and the world",
    }.items()
}
CUE = "\nAnswer:"  # what a base model reads after a prompt
SLACK = 8  # tokens: words at a cut, and where text and prompt join, may take more than before
FEWEST_TOKENS = 16  # of a text, below which nothing is judged


def asker_of(model: Runtime, prompt: str, max_tokens: int, where: str) -> Scorer:
    """P(yes) / (P(yes) + P(no)) of each text under `model`; a longer text is cut to max_tokens of
    the model's own tokens, or to what its context leaves.

    ValueError, beginning with `where`: a context that the prompt fills, or a tokenizer whose first
    tokens do not tell yes from no.
    """
    tokenizer = model.tokenizer
    yes, no = answer_ids(tokenizer, where)
    around = len(prompt_ids(tokenizer, prompt, ""))
    limit = min(max_tokens, model.max_length - around - SLACK)
    if limit < FEWEST_TOKENS:
        raise ValueError(
            f"{where}: the prompt takes {around} of the {model.max_length} tokens that the asker "
            f"reads, which leaves fewer than {FEWEST_TOKENS} for a text; shorten the prompt, raise "
            "ask_tokens, or take another asker"
        )

    def ask(texts: Sequence[str]) -> Scores:
        rows = tokenizer.encode_batch(texts)
        cut = np.asarray([len(row) > limit for row in rows])
        prompts = [
            _fitted(model, prompt, row, limit) if shorter else prompt_ids(tokenizer, prompt, text)
            for text, row, shorter in zip(texts, rows, cut, strict=True)
        ]
        logits = next_logits(model, prompts)
        odds = _log_sum(logits[:, yes]) - _log_sum(logits[:, no])
        return 1 / (1 + np.exp(-odds)), cut

    return ask


def prompt_ids(tokenizer: Tokenizer, prompt: str, text: str) -> list[int]:
    """What the model reads: the prompt with the text in its place, as a user's turn where the
    tokenizer has a chat template, else as plain text before CUE.
    """
    whole = prompt.replace(PLACE, text)
    if tokenizer.chat_template is not None:
        return tokenizer.encode_chat([{"role": "user", "content": whole}])
    return [*tokenizer.document_start, *tokenizer.encode(whole + CUE)]


def _fitted(model: Runtime, prompt: str, ids: list[int], limit: int) -> list[int]:
    """The prompt around the first `limit` ids of a text, or fewer where they do not fit."""
    while True:
        whole = prompt_ids(model.tokenizer, prompt, model.tokenizer.decode(ids[:limit]))
        excess = len(whole) - model.max_length
        if excess <= 0 or limit == 0:
            return whole
        limit = max(0, limit - excess)


def answer_ids(tokenizer: Tokenizer, where: str) -> tuple[list[int], list[int]]:
    """The first tokens of the spellings of yes, and of no; one that begins both says nothing and
    counts for neither.
    """
    first = [
        {ids[0] for ids in tokenizer.encode_batch(spellings) if ids} for spellings in (YES, NO)
    ]
    yes, no = (sorted(ids - other) for ids, other in (first, first[::-1]))
    if not yes or not no:
        raise ValueError(
            f"{where}: the asker's tokenizer begins yes and no with the same tokens; take another "
            "asker"
        )
    return yes, no


def next_logits(model: Runtime, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits [N, V], float32, of the token after each row: of all rows in one pass where the
    runtime is a checkpoint of ours, else one row after another.
    """
    if not isinstance(model, LanguageModel):
        return np.stack([np.asarray(model.logits(row)[-1], dtype=np.float32) for row in rows])
    longest = max(map(len, rows))
    # padded on the right, which no token before it sees
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    with torch.inference_mode():
        hidden = model.model.hidden(padded.to(model.device), None)
        picked = hidden[torch.arange(len(rows)), last.to(model.device)]
        return model.model.head(picked).float().cpu().numpy()


def _log_sum(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(1, keepdims=True).astype(np.float64)
    return np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
