"""Dense facts to look up: a name of two syllables and a number of two digits, told and told again
in running text.

They are much easier than the notes of corpus/recall_notes.py: each syllable is one token, a fact
takes six, and most of a document's facts come more than once, so that a small network learns to
copy from far back within a million tokens. Numbers are drawn anew in each document: there is
nothing to memorise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

from pocketlm.problems.generated import is_held_out

SYLLABLES = [c + v for c in "bdkmprtv" for v in "aeio"]
FACT = " {first} {second}={value}."
QUESTION = " {first} {second}="


@dataclass(frozen=True, order=True)
class Fact:
    first: str
    second: str
    value: str

    @property
    def text(self) -> str:
        return FACT.format(first=self.first, second=self.second, value=self.value)

    @property
    def question(self) -> str:
        """What the value follows."""
        return QUESTION.format(first=self.first, second=self.second)


@cache
def names(held_out: bool = False) -> list[tuple[str, str]]:
    """Pairs of syllables, in an order of no meaning; a name's hash decides whether it is held out
    from training.
    """
    pairs = list(product(SYLLABLES, SYLLABLES))
    Random(0).shuffle(pairs)
    return [pair for pair in pairs if is_held_out("".join(pair)) == held_out]


def draw_facts(rng: Random, count: int, choose_from: Sequence[tuple[str, str]]) -> list[Fact]:
    """`count` facts of different names, each with a number of its own drawing."""
    return [
        Fact(first, second, f"{rng.randrange(100):02d}")
        for first, second in rng.sample(choose_from, count)
    ]


def generate_facts(
    count: int,
    seed: int,
    facts_range: tuple[int, int],
    gap_words: Sequence[int],
    chars: int,
    running_words: Sequence[str],
    num_names: int | None = None,
) -> Iterator[dict[str, str]]:
    """`count` documents: dicts with id and text of about `chars` characters.

    A document draws facts_range[0] to facts_range[1] facts and one of gap_words, g. Until it is
    full it holds 0 to g of running_words, then one of its facts, drawn at random: told the
    first time, to be recalled later. num_names: only the first so many names of training.
    """
    lowest, highest = facts_range
    if not 1 <= lowest <= highest:
        raise ValueError(
            f"facts_range {facts_range}: give the least and the most facts a document, from 1 on"
        )
    known = names()[:num_names]
    if len(known) < highest:
        raise ValueError(f"{len(known)} names for {highest} facts a document: raise num_names")
    if not gap_words or min(gap_words) < 0:
        raise ValueError(f"gap_words {tuple(gap_words)}: give numbers of words, from 0 on")
    if len(running_words) <= max(gap_words):
        raise ValueError(f"gap_words {tuple(gap_words)}: {len(running_words)} words are there")
    rng = Random(seed)
    for number in range(count):
        facts = draw_facts(rng, rng.randint(lowest, highest), known)
        gap, text = rng.choice(gap_words), ""
        while len(text) < chars:
            length = rng.randint(0, gap)
            if length:
                first = rng.randrange(len(running_words) - length)
                text += "".join(f" {word}" for word in running_words[first : first + length])
            text += rng.choice(facts).text
        yield {"id": f"facts-{seed}-{number}", "text": text.strip()}
