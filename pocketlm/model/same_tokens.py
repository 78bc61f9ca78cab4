"""Whether two tokenizers mean the same: the same ids for the same words, cut out of text the same
way, ended alike.

Distillation asks for the same words alone, for the teacher reads the student's ids. A merge asks
for all of it, since one tokenizer is written beside weights of both.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pocketlm.model.tokenizer import Tokenizer

SHOWN = 3  # words that are named, of those that differ
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
ROLES = ("bos_id", "eos_id", "end_of_turn_id", "stop_ids", "document_start")
FLAGS = ("adds_bos", "adds_eos")  # what is put around a plain text


def vocabulary_differences(one: Tokenizer, two: Tokenizer) -> list[str]:
    """What differs between the words of two tokenizers, in words: which of them has which ids. []
    where nothing does.
    """
    first, second = (
        tokenizer.backend.get_vocab(with_added_tokens=True) for tokenizer in (one, two)
    )
    moved = sorted(
        (word for word in first.keys() & second.keys() if first[word] != second[word]),
        key=first.__getitem__,
    )
    differences = []
    if moved:
        differences.append(_some(f"{word!r} is {first[word]} and {second[word]}" for word in moved))
    for place, has, lacks in (("first", first, second), ("second", second, first)):
        alone = sorted(has.keys() - lacks.keys(), key=has.__getitem__)
        if alone:
            differences.append(
                f"only the {place} has " + _some(f"{word!r} ({has[word]})" for word in alone)
            )
    return differences


def pipeline_differences(one: Tokenizer, two: Tokenizer) -> list[str]:
    """Which parts of the way from text to words differ: merges, normalizer, added tokens and the
    like.
    """
    first, second = (_content(tokenizer) for tokenizer in (one, two))
    differences = [name for name in PARTS if first.get(name) != second.get(name)]
    models = [dict(content["model"], vocab=None) for content in (first, second)]
    changed = sorted(
        name
        for name in models[0].keys() | models[1].keys()
        if models[0].get(name) != models[1].get(name)
    )
    differences += [f"the model's {name}" for name in changed]
    added = [
        {token["content"]: token for token in content.get("added_tokens", [])}
        for content in (first, second)
    ]
    flags = [word for word in added[0] if word in added[1] and added[0][word] != added[1][word]]
    kinds = sorted(added[0].keys() ^ added[1].keys())  # one has it as a word of the vocabulary
    return differences + [f"the added token {word!r}" for word in (flags + kinds)[:SHOWN]]


def role_differences(one: Tokenizer, two: Tokenizer) -> list[str]:
    """Which special tokens differ: what begins a document, ends it, ends an answer."""
    pairs = [(role, getattr(one, role), getattr(two, role)) for role in ROLES]
    differences = [
        f"{role} is {_named(one, a)} and {_named(two, b)}" for role, a, b in pairs if a != b
    ]
    flags = [(flag, getattr(one, flag), getattr(two, flag)) for flag in FLAGS]
    return differences + [f"{flag} is {a} and {b}" for flag, a, b in flags if a != b]


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.backend.to_str())


def _named(tokenizer: Tokenizer, ids: int | set[int] | list[int] | None) -> str:
    """Ids with their words."""
    if ids is None:
        return "none"
    listed = [ids] if isinstance(ids, int) else sorted(ids)
    return ", ".join(f"{i} ({tokenizer.backend.id_to_token(i)!r})" for i in listed) or "none"


def _some(texts: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    listed = list(texts)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def check_words(tokenizer: Tokenizer, name: str, corpus: Path) -> None:
    """Nothing, or a ValueError where the validation text was encoded with other words than the
    models'.
    """
    differences = vocabulary_differences(tokenizer, Tokenizer.load(corpus / "tokenizer"))
    if differences:
        raise ValueError(
            f"the tokenizer of {name} is not the one {corpus} was encoded with: "
            f"{'; '.join(differences)} (the model first); "
            "curate with tokenizer= one of the models"
        )
