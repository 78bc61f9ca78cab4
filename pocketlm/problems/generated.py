"""Generated problems with known answers, which training learns from and evaluation asks: any room
may import them.

A problem is held out by a hash of what is asked, whatever its seed: training streams never hold it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count as count_from

from pocketlm.problems.families import CONFIGS, FAMILIES

ANSWER_MARK = "#### "  # GSM8K's convention: the last line of a response is the mark and the answer
HELD_OUT_SHARE = 16  # one question in 16 is never trained on
# stream `seed` reads reasoning-gym's items [seed * stride, (seed + 1) * stride)
SEED_STRIDE = 10_000_000


def generate_problems(
    families: Sequence[str], count: int, seed: int, held_out: bool = False
) -> Iterator[dict[str, str]]:
    """`count` problems, the families taking turns: dicts with id, prompt, response, family, answer.

    The same arguments give the same problems. With held_out=False none of the held-out questions is
    drawn, whatever the seed; with held_out=True only they are. A question may repeat in a long
    stream. ValueError: no family, an unknown one, or a negative seed.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        raise ValueError(
            f"families {unknown or '(none given)'}: choose from {', '.join(sorted(FAMILIES))}"
        )
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; problems are drawn with seeds from 0 on")
    streams = {name: draw(name, seed, held_out) for name in families}
    for number in range(count):
        _, problem = next(streams[families[number % len(families)]])
        yield problem


def draw(family: str, seed: int, held_out: bool = False) -> Iterator[tuple[dict, dict[str, str]]]:
    """Endless (reasoning-gym's entry, our problem) pairs of one family."""
    dataset = _dataset(family)
    for number in count_from(seed * SEED_STRIDE):
        entry = dataset[number]
        worked = FAMILIES[family].work(entry)
        if worked is None or is_held_out(FAMILIES[family].question_key(worked.prompt)) != held_out:
            continue
        response = "\n".join([*worked.steps, ANSWER_MARK + worked.answer])
        yield (
            entry,
            {
                "id": f"{family}-{number}",
                "prompt": worked.prompt,
                "response": response,
                "family": family,
                "answer": worked.answer,
            },
        )


def score_answer(family: str, problem: dict, answer: str) -> bool:
    """True where reasoning-gym's own verifier gives `answer` full marks for this problem."""
    row = FAMILIES[family]
    expected = row.verifier_answer(problem["answer"])
    entry = {
        "question": problem["prompt"],
        "answer": expected,
        "metadata": row.metadata(problem["prompt"], problem["answer"]),
    }
    given = row.verifier_answer(answer.strip())
    if family == "number_sorting" and given != expected:
        # the verifier forgives a distance of 1, meant for rounded decimals; ours are whole
        return False
    return bool(_dataset(family).score_answer(given, entry) == 1.0)


def is_held_out(question: str) -> bool:
    """True for the one question in HELD_OUT_SHARE that only evaluation may ask."""
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


@cache
def _dataset(family: str):
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            "worked problems need the reasoning-gym package: pip install reasoning-gym"
        ) from error
    return reasoning_gym.create_dataset(family, seed=0, size=1, **CONFIGS[family])
