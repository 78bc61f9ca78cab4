"""Facts to look up in a long text (problems/look_up_facts.py): a needle and some distractors among
running text, and at the end the beginning of the needle again.
"""

from collections.abc import Sequence
from random import Random

from pocketlm.model.tokenizer import Tokenizer
from pocketlm.problems.look_up_facts import Fact, draw_facts, names

VALUE_TOKENS = 2  # two digits


def fact_trials(
    tokenizer: Tokenizer,
    context_tokens: int,
    trials: int,
    seed: int,
    filler_documents: Sequence[str],
    distractors: int,
) -> list[tuple[list[int], str]]:
    """(prompt ids, value) of each trial: filler that fills the context, one fact in it at a depth
    spread evenly over the trials, `distractors` others at random places, and at the end the
    needle's name, which its value is to follow.

    All names are held out from training. The prompt and the value take at most `context_tokens`
    tokens. ValueError: no filler, too short a context, or names or digits that are not single
    tokens: then the task is another one.
    """
    words = [
        tokenizer.encode(f" {word}") for document in filler_documents for word in document.split()
    ]
    if not words:
        raise ValueError("look-up trials need filler text: the documents hold no word")
    rng, prompts = Random(seed), []
    for trial in range(trials):
        depth = trial / (trials - 1) if trials > 1 else 0.5
        needle, *others = draw_facts(rng, 1 + distractors, names(held_out=True))
        question = tokenizer.encode(needle.question)
        room = context_tokens - VALUE_TOKENS - len(question) - len(tokenizer.document_start)
        facts = {fact: _fact_ids(tokenizer, fact) for fact in (needle, *others)}
        room -= sum(map(len, facts.values()))
        if room < 0:
            raise ValueError(
                f"context_tokens {context_tokens} is too short for {1 + distractors} facts and a "
                f"question; {-room} tokens are missing"
            )
        haystack = _filler(words, rng.randrange(len(words)), room)
        places = sorted((rng.random(), fact) for fact in others) if others else []
        prompt = _with_facts(haystack, [*places, (depth, needle)], facts)
        prompts.append(([*tokenizer.document_start, *prompt, *question], needle.value))
    return prompts


def _fact_ids(tokenizer: Tokenizer, fact: Fact) -> list[int]:
    ids = tokenizer.encode(fact.text)
    if len(ids) != 6:
        pieces = [tokenizer.decode([token]) for token in ids]
        raise ValueError(
            f"the fact {fact.text!r} is {len(ids)} tokens, {pieces}, not six: train the tokenizer "
            "on more facts, so that every syllable is one token"
        )
    return ids


def _filler(words: Sequence[list[int]], first: int, room: int) -> list[list[int]]:
    """Words from number `first` on, as many as fit into `room` tokens."""
    chosen: list[list[int]] = []
    while room > 0:
        word = words[(first + len(chosen)) % len(words)]
        room -= len(word)
        if room >= 0:
            chosen.append(word)
    return chosen


def _with_facts(
    haystack: list[list[int]], places: list[tuple[float, Fact]], facts: dict[Fact, list[int]]
) -> list[int]:
    """The ids of the words with each fact at its depth among them, from 0 to 1."""
    pieces = list(haystack)
    for depth, fact in places:
        pieces.insert(round(depth * len(pieces)), facts[fact])
    return [token for piece in pieces for token in piece]
