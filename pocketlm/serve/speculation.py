"""What a draft model gains: the same answers of a .gguf with and without it, in turns.

Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192): the draft proposes tokens, the model
checks them in one pass and takes those that it would have made itself.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

from pocketlm.model.tokenizer import Tokenizer
from pocketlm.serve.backend import Backend, Wanted
from pocketlm.serve.open_backend import Opening, open_backend

QUESTIONS = (  # our choice: prose, mathematics, code and a list
    "Why is the sky blue?",
    "A train goes 60 km in 45 minutes. How fast is it in km/h? Think step by step.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List ten things that a kitchen needs, and say of each what it is for.",
    "Solve 3x + 7 = 22 and check the result.",
    "Write a Python program that counts the words of a text file.",
)


def gain_of_draft(
    path: Path,
    draft: Path,
    *,
    new_tokens: int,
    repeats: int,
    threads: int,
    report: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Tokens a second after the first, greedily, of each question with and without the draft, and
    what became of the proposed tokens.

    gain: for each question the median ratio of `repeats` pairs, after one that does not count. An
    answer that ends before two tokens has no pace and is left out; `questions` says how many count.
    ValueError where none does, or where the draft does not fit.
    """
    report("opening it with and without the draft")
    with closing(open_backend(path, Opening(slots=1, threads=threads))) as plain:
        opening = Opening(slots=1, threads=threads, draft=draft)
        with closing(open_backend(path, opening)) as drafted:
            prompts = [_prompt(plain.tokenizer, question) for question in QUESTIONS]
            rows = []
            for number, ids in enumerate(prompts, start=1):
                report(f"question {number} of {len(prompts)} with and without the draft")
                wanted = Wanted(
                    ids=ids, max_new_tokens=new_tokens, stop_ids=plain.tokenizer.stop_ids
                )
                rows += _pairs(plain, drafted, wanted, repeats)
    if not rows:
        raise ValueError(f"{path}: no answer is long enough to be timed")
    proposed = sum(row["proposed"] for row in rows)
    return {
        "draft": draft.name,
        "questions": len(rows),
        "gain": [row["gain"] for row in rows],
        "plain_tokens_per_second": statistics.median(row["plain"] for row in rows),
        "drafted_tokens_per_second": statistics.median(row["drafted"] for row in rows),
        "proposed": proposed,
        "accepted": sum(row["accepted"] for row in rows),
    }


def _prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """As a turn where the model has a chat template, else as plain text."""
    if tokenizer.chat_template is None:
        return [*tokenizer.document_start, *tokenizer.encode(question)]
    return tokenizer.encode_chat([{"role": "user", "content": question}])


def _pairs(
    plain: Backend, drafted: Backend, wanted: Wanted, repeats: int
) -> Sequence[dict[str, Any]]:
    """One row, or none where an answer is too short to be timed."""
    pairs = []
    for _ in range(repeats + 1):
        one, two = (asyncio.run(_timed(backend, wanted)) for backend in (plain, drafted))
        if one is None or two is None:
            return []
        pairs.append((one, two))
    counted = pairs[1:]
    return [
        {
            "gain": statistics.median(two["pace"] / one["pace"] for one, two in counted),
            "plain": statistics.median(one["pace"] for one, _ in counted),
            "drafted": statistics.median(two["pace"] for _, two in counted),
            "proposed": counted[0][1]["proposed"],
            "accepted": counted[0][1]["accepted"],
        }
    ]


async def _timed(backend: Backend, wanted: Wanted) -> dict[str, Any] | None:
    """Tokens a second after the first piece, and what became of proposed ones; None for an answer
    of one piece.
    """
    times: list[tuple[float, int]] = []
    proposed = accepted = 0
    async with aclosing(backend.answer(wanted)) as pieces:
        async for piece in pieces:
            if piece.tokens:
                times.append((time.perf_counter(), piece.tokens))
            proposed, accepted = proposed + piece.drafted, accepted + piece.accepted
    if len(times) < 2:
        return None
    made = sum(count for _, count in times[1:])
    pace = made / (times[-1][0] - times[0][0])
    return {"pace": pace, "proposed": proposed, "accepted": accepted}
