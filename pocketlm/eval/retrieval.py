"""Needle in a haystack: one note in a long text, and a question about it at the end."""

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from random import Random
from typing import Any

from pocketlm.eval.prompts import prompt_ids
from pocketlm.inference.runtime import Runtime
from pocketlm.model.tokenizer import Tokenizer

TOGETHER = 10  # long prompts answered in one batch
ANSWER_TOKENS = 32  # room for a sentence that holds the value


def needle_trials(
    tokenizer: Tokenizer,
    context_tokens: int,
    trials: int,
    seed: int,
    filler_documents: Sequence[str],
    notes: Iterable[dict[str, str]],
) -> list[tuple[list[int], str]]:
    """(prompt ids, answer) of each trial: filler that fills the context, one note in it, its
    question at the end.

    The notes lie at depths spread evenly from the start of the text to its end. The prompt and its
    answer together take at most `context_tokens` tokens. `notes` gives dicts with note, question,
    answer (corpus/recall_notes.py, held out); the filler is cut between sentences. ValueError: a
    context too short for a note and its question, or no filler.
    """
    sentences = [
        f"{sentence.strip()}."
        for document in filler_documents
        for sentence in document.replace("\n", " ").split(".")
        if sentence.strip()
    ]
    if not sentences:
        raise ValueError("needle trials need filler text: the documents hold no sentence")
    chosen = list(islice(notes, trials))
    if len(chosen) < trials:
        raise ValueError(f"{len(chosen)} notes for {trials} trials: each trial hides another one")
    rng, prompts = Random(seed), []
    for trial, note in enumerate(chosen):
        depth = trial / (trials - 1) if trials > 1 else 0.5
        prompts.append(
            _trial(tokenizer, context_tokens, depth, rng.randrange(len(sentences)), sentences, note)
        )
    return prompts


def _trial(
    tokenizer: Tokenizer,
    context_tokens: int,
    depth: float,
    first: int,
    sentences: list[str],
    note: dict[str, str],
) -> tuple[list[int], str]:
    """Sentences from number `first` on, as many as fit, and the note at `depth` among them."""
    room = context_tokens - ANSWER_TOKENS

    def prompt(count: int) -> list[int]:
        haystack = [sentences[(first + place) % len(sentences)] for place in range(count)]
        haystack.insert(round(depth * count), note["note"])
        return prompt_ids(tokenizer, note["question"], passage=" ".join(haystack))

    if len(prompt(0)) > room:
        raise ValueError(
            f"context_tokens {context_tokens} is too short for one note and its question "
            f"({len(prompt(0)) + context_tokens - room} tokens)"
        )
    fits, too_many = 0, context_tokens  # a sentence is at least one token
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if len(prompt(middle)) <= room else (fits, middle)
    return prompt(fits), note["answer"]


def find_needles(
    model: Runtime, trials: Sequence[tuple[list[int], str]], answer_tokens: int = ANSWER_TOKENS
) -> dict[str, Any]:
    """{"found", "of", "cut", "by_depth"}: in how many trials the model's greedy answer of at most
    answer_tokens tokens holds the value.

    cut: in how many it does not and was still going on then. by_depth: the hits in each fifth of
    the trials, in their order: the first fifth lies furthest from the question.
    """
    hits, cut, stop_ids = [], 0, model.tokenizer.stop_ids
    for first in range(0, len(trials), TOGETHER):
        chosen = trials[first : first + TOGETHER]
        new = model.generate(
            [ids for ids, _ in chosen], max_new_tokens=answer_tokens, stop_ids=stop_ids
        )
        for ids, (_, answer) in zip(new, chosen, strict=True):
            right = answer in model.tokenizer.decode(ids)
            hits.append(right)
            cut += not right and len(ids) >= answer_tokens
    borders = [len(hits) * fifth // 5 for fifth in range(6)]
    by_depth = [sum(hits[first:last]) for first, last in pairwise(borders)]
    return {"found": sum(hits), "of": len(trials), "cut": cut, "by_depth": by_depth}
