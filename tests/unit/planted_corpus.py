"""A corpus of small lessons with junk planted in its probe split: lines in disorder, licences,
navigation, and lessons told again with other words.
"""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketlm.data.shards import write_shard
from pocketlm.model.files import write_json
from pocketlm.model.tokenizer import train_tokenizer

NOUNS = (
    *("river", "stone", "engine", "planet", "crystal", "market", "muscle", "magnet", "glacier"),
    *("enzyme", "circuit", "harvest", "pendulum", "satellite", "membrane", "fraction", "vector"),
    *("furnace", "lens", "volcano", "antenna", "bacterium", "treaty", "tariff", "molecule"),
    *("orbit", "lever", "canal", "seed", "battery", "comet", "artery", "polygon", "matrix"),
    *("estuary", "alloy", "neuron", "pigment", "turbine", "parliament", "dividend", "isotope"),
)
VERBS = ("warms", "moves", "feeds", "bends", "slows", "divides", "carries", "shields", "drives")
QUALITIES = (
    "heavy",
    "narrow",
    "stable",
    "bright",
    "porous",
    "rigid",
    "acidic",
    "distant",
    "scarce",
)
SYNONYMS = {
    **{"river": "stream", "stone": "rock", "engine": "motor", "planet": "world", "seed": "kernel"},
    **{"market": "bazaar", "furnace": "kiln", "treaty": "pact", "canal": "waterway"},
    **{"warms": "heats", "moves": "shifts", "bends": "curves", "slows": "delays"},
    **{"heavy": "weighty", "narrow": "thin", "stable": "steady", "bright": "shining"},
    **{"because": "since", "therefore": "thus", "engineers": "builders"},
}
LICENCE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of the work.",
    "The above copyright notice and this permission notice shall be included in all copies.",
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED.',
    "IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM OR DAMAGES.",
    "Redistributions of source code must retain the above copyright notice and this list.",
    "Neither the name of the copyright holder may be used to endorse products derived from it.",
)
MENU = (
    *("Home", "About us", "Contact", "Log in", "Sign up", "Next page", "Previous", "Search"),
    *("Terms of use", "Privacy", "Cookies", "Share", "Print", "Subscribe", "Read more", "FAQ"),
)
KINDS = ("shuffled", "licence", "menu", "paraphrase")
MEMBERSHIP = {"knowledge": ("forum", "web"), "maths": ("lessons", "web")}


def lesson(draw: np.random.Generator) -> str:
    """A text of lines in which each sentence goes on where the line before it stopped."""
    nouns = draw.choice(NOUNS, 7, replace=False)
    parts = []
    for _ in range(10):
        a, b, c = draw.choice(nouns, 3, replace=False)
        v, w = draw.choice(VERBS, 2, replace=False)
        q = draw.choice(QUALITIES)
        n = draw.integers(2, 90)
        parts.append(
            str(
                draw.choice(
                    [
                        f"The {a} {v} the {b} because every {c} is {q}.",
                        f"When the {a} {v} a {q} {b}, the {c} {w} it; therefore both are {q}.",
                        f"Suppose that {n} parts of the {a} are {q}: then the {b} {w} the {c}.",
                        f"Engineers say that a {q} {a} {v} the {b} and so never {w} a {c}.",
                    ]
                )
            )
        )
    return textwrap.fill(" ".join(parts), 46)


def shuffled(text: str, draw: np.random.Generator) -> str:
    """The lines of a text in another order."""
    lines = text.splitlines()
    order = draw.permutation(len(lines))
    while (order == np.arange(len(lines))).all():
        order = draw.permutation(len(lines))
    return "\n".join(lines[i] for i in order)


def licence(draw: np.random.Generator) -> str:
    clauses = draw.permutation(LICENCE)[:4]
    year = draw.integers(1990, 2025)
    return textwrap.fill(f"Copyright (c) {year} The Authors. " + " ".join(clauses), 60)


def menu(draw: np.random.Generator) -> str:
    return "\n".join(draw.choice(MENU, 14))


def paraphrase(text: str, draw: np.random.Generator) -> str:
    """The text with synonyms in the place of half the words that have one, lines broken anew."""
    words = [
        SYNONYMS[word] if word in SYNONYMS and draw.random() < 0.5 else word
        for word in text.replace("\n", " ").split()
    ]
    return textwrap.fill(" ".join(words), 46)


def write_labels(file: Path, count: int = 40) -> Path:
    """Lessons labelled 5 and junk labelled 0, none of which is in the corpus."""
    draw = np.random.default_rng(99)
    rows = []
    for _ in range(count):
        rows.append({"text": lesson(draw), "label": 5})
        rows.append({"text": shuffled(lesson(draw), draw), "label": 0})
        rows.append({"text": licence(draw) if draw.random() < 0.5 else menu(draw), "label": 0})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@dataclass(frozen=True)
class Planted:
    """texts: of each source's probe split. kinds: of each what it is: "lesson", or one of KINDS.
    retold: of a paraphrase (source, number) of the lesson it tells again.
    """

    corpus: Path
    texts: dict[str, list[str]]
    kinds: dict[str, list[str]]
    retold: dict[tuple[str, int], tuple[str, int]]


def write_planted(corpus: Path, lessons: int = 24, junk: int = 6) -> Planted:
    """Three sources of so many lessons each, among them so many texts of each kind of junk; a
    paraphrase is of a lesson of the source before it.
    """
    draw = np.random.default_rng(5)
    plain = {name: [lesson(draw) for _ in range(lessons)] for name in ("forum", "lessons", "web")}
    texts: dict[str, list[str]] = {}
    kinds: dict[str, list[str]] = {}
    retold: dict[tuple[str, int], tuple[str, int]] = {}
    names = list(plain)
    for place, name in enumerate(names):
        rows: list[tuple[str, str, tuple[str, int] | None]]
        rows = [("lesson", text, None) for text in plain[name]]
        for number in range(junk):
            rows.append(("shuffled", shuffled(lesson(draw), draw), None))
            rows.append(("licence", licence(draw), None))
            rows.append(("menu", menu(draw), None))
            if place:
                other = names[place - 1], number + junk
                rows.append(("paraphrase", paraphrase(plain[other[0]][other[1]], draw), other))
        order = [int(i) for i in draw.permutation(len(rows))]
        kinds[name] = [rows[i][0] for i in order]
        texts[name] = [rows[i][1] for i in order]
        for number, i in enumerate(order):
            if (other := rows[i][2]) is not None:
                original = plain[other[0]][other[1]]
                retold[name, number] = other[0], texts[other[0]].index(original)
    tokenizer = train_tokenizer([text for rows in texts.values() for text in rows], 600)
    for name, source_texts in texts.items():
        folder = corpus / "shards" / name
        folder.mkdir(parents=True)
        documents = [[*tokenizer.document_start, *tokenizer.encode(text)] for text in source_texts]
        for split in ("train", "validation", "probe"):
            write_shard(folder, split, documents, vocab_size=tokenizer.vocab_size)
    domains = {"forum": "knowledge", "lessons": "maths", "web": "knowledge"}
    write_json(
        corpus / "curation.json", {"sources": {n: {"domain": d} for n, d in domains.items()}}
    )
    (corpus / "tokenizer").mkdir()
    tokenizer.save(corpus / "tokenizer")
    return Planted(corpus, texts, kinds, retold)
