"""Notes to remember and questions about them: they teach recall, and evaluation hides them in long
texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random

from pocketlm.problems.generated import is_held_out

NOTE = "Note: the code of {name} is {value}."
RECALL_QUESTION = "What is the code of {name}?"
# in the note's own words: what follows them is what to copy
RECALL_ANSWER = "The code of {name} is {value}."
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]  # a name is two: 4,900 names
FILLER = (
    "The rain stopped before noon.",
    "A train left the station late.",
    "Bread is made of flour and water.",
    "The road runs along the river.",
    "Birds fly south in the winter.",
    "The shop opens early on Monday.",
    "Two boats wait in the harbour.",
    "The garden is quiet at night.",
)


def draw_notes(seed: int, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Endless facts to remember: dicts with note, question, response (a sentence) and answer (its 4
    digits).

    A name's hash decides whether it is held out: no name is both trained on and asked in
    evaluation.
    """
    rng = Random(seed)
    while True:
        name = rng.choice(SYLLABLES) + rng.choice(SYLLABLES)
        value = str(rng.randrange(1000, 10_000))
        if is_held_out(name) == held_out:
            yield {
                "note": NOTE.format(name=name, value=value),
                "question": RECALL_QUESTION.format(name=name),
                "response": RECALL_ANSWER.format(name=name, value=value),
                "answer": value,
            }


def generate_notes(
    count: int, seed: int, pairs_range: tuple[int, int], filler: Sequence[str] = FILLER
) -> Iterator[dict[str, str]]:
    """`count` documents that teach recall: dicts with id, text, prompt, response, answer.

    `text` holds pairs_range[0] to pairs_range[1] notes with 0 to 2 filler sentences before each,
    then up to three recall questions with their answers; (prompt, response) ask the first of them,
    as a turn of a chat.
    """
    lowest, highest = pairs_range
    if not 1 <= lowest <= highest:
        raise ValueError(
            f"pairs_range {pairs_range}: give the least and the most notes a document, from 1 on"
        )
    rng, notes = Random(seed), draw_notes(seed)
    for number in range(count):
        pairs = {note["question"]: note for note in islice(notes, rng.randint(lowest, highest))}
        passage = " ".join(
            sentence
            for note in pairs.values()
            for sentence in (*rng.sample(filler, min(len(filler), rng.randint(0, 2))), note["note"])
        )
        questions = rng.sample(list(pairs.values()), min(len(pairs), rng.randint(1, 3)))
        exchanges = "\n".join(
            f"Question: {note['question']}\nAnswer: {note['response']}" for note in questions
        )
        yield {
            "id": f"notes-{seed}-{number}",
            "text": f"{passage}\n{exchanges}",
            "prompt": f"{passage}\n{questions[0]['question']}",
            "response": questions[0]["response"],
            "answer": questions[0]["answer"],
        }
