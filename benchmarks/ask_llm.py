"""How well a model answers as Ask-LLM: the area under the curve of its score on real texts against
junk that is made of them, and against other books.

python benchmarks/ask_llm.py MODEL DATA --texts 40

MODEL: whatever pocketlm opens. DATA: a folder with edu_science, maths and general_books, each a
.jsonl, plain or compressed, of {"text": ..., "title": ...}. An area of 0.5 is chance.
"""

import argparse
import random
import textwrap
import time
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from pocketlm.data.probe_building.ask import CAPABILITY_PROMPTS, REASONING_PROMPT, asker_of
from pocketlm.model.json_lines import json_lines
from pocketlm.stages.probes import opened_asker

CHARS = 1000  # of a passage: about 256 tokens of English
TOKENS = 256
BATCH = 8
MENU = (
    *("Home", "About us", "Contact", "Log in", "Sign up", "Next page", "Previous", "Search"),
    *("Terms of use", "Privacy policy", "Cookies", "Share", "Print", "Subscribe", "Read more"),
)


def passages(folder: Path, name: str, count: int, draw: random.Random) -> list[tuple[str, str]]:
    """(title, passage) of texts evenly spaced, each from a paragraph's beginning near a drawn
    place.
    """
    (file,) = [path for path in folder.iterdir() if path.name.startswith(f"{name}.jsonl")]
    rows = [row for _, row in json_lines(file) if len(row["text"]) > 3 * CHARS]
    chosen = []
    for row in rows[:: max(1, len(rows) // count)][:count]:
        text = row["text"]
        place = draw.randrange(len(text) // 4, len(text) - 2 * CHARS)
        paragraph = text.find("\n", place, place + CHARS) + 1
        chosen.append((row.get("title") or name, text[paragraph or place :][:CHARS].strip()))
    return chosen


def shuffled(text: str, draw: random.Random) -> str:
    lines = textwrap.wrap(text, 70)
    draw.shuffle(lines)
    return "\n".join(lines)


def licences(count: int, draw: random.Random) -> list[str]:
    """Passages of the licence files of installed packages, none twice."""
    texts: dict[str, None] = {}
    for package in distributions():
        for file in package.files or ():
            if "licen" in file.name.lower() and file.suffix in ("", ".txt", ".md"):
                path = Path(str(package.locate_file(file)))
                if path.is_file():
                    text = path.read_text("utf-8", errors="replace")
                    for start in range(0, len(text) - CHARS, 4 * CHARS):
                        texts[text[start : start + CHARS].strip()] = None
    return draw.sample(list(texts), min(count, len(texts)))


def navigation(titles: list[str], draw: random.Random) -> str:
    """A page's menu, with titles of texts as its links."""
    words = [*draw.sample(MENU, 9), *draw.sample(titles, min(14, len(titles)))]
    draw.shuffle(words)
    return "\n".join(f"- {word}" if draw.random() < 0.5 else word for word in words)


def area(good: np.ndarray, bad: np.ndarray) -> float:
    """The share of pairs of which the good text has the higher score; equal ones count half."""
    higher = (good[:, None] > bad[None]).mean()
    return float(higher + 0.5 * (good[:, None] == bad[None]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="AUC of Ask-LLM on real text")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", type=int, default=40, help="of each kind")
    given = parser.parse_args()
    draw = random.Random(0)
    kinds: dict[str, list[str]] = {}
    titles: list[str] = []
    for name in ("edu_science", "maths", "general_books"):
        rows = passages(given.data, name, given.texts, draw)
        kinds[name] = [text for _, text in rows]
        titles += [title for title, _ in rows]
    good = [*kinds["edu_science"], *kinds["maths"]]
    kinds["shuffled lines"] = [shuffled(text, draw) for text in draw.sample(good, given.texts)]
    kinds["licences"] = licences(given.texts, draw)
    kinds["navigation"] = [navigation(titles, draw) for _ in range(given.texts)]
    prompts = {"reasoning": REASONING_PROMPT, "maths": CAPABILITY_PROMPTS["maths"]}
    print(f"{given.model.name}; texts of each kind:", {k: len(v) for k, v in kinds.items()})
    with opened_asker(given.model) as model:
        for prompt_name, prompt in prompts.items():
            ask, start, cut = asker_of(model, prompt, TOKENS, prompt_name), time.perf_counter(), 0
            scores = {}
            for kind, texts in kinds.items():
                results = [ask(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
                scores[kind] = np.concatenate([values for values, _ in results])
                cut += sum(int(flags.sum()) for _, flags in results)
            print_areas(prompt_name, scores)
            total, seconds = sum(map(len, kinds.values())), time.perf_counter() - start
            print(f"{total} texts, {cut} of them cut to {TOKENS} tokens, in {seconds:.0f} s\n")


def print_areas(prompt: str, scores: dict[str, np.ndarray]) -> None:
    """Areas of both kinds of good text against every other kind."""
    junk = [kind for kind in scores if kind not in ("edu_science", "maths")]
    print(f"prompt: {prompt}\n{'kind':>16} {'mean P(yes)':>12} {'edu_science':>12} {'maths':>12}")
    for kind, values in scores.items():
        cells = [
            f"{area(scores[good], values):12.3f}" if good != kind else f"{'-':>12}"
            for good in ("edu_science", "maths")
        ]
        print(f"{kind:>16} {values.mean():12.3f} {cells[0]} {cells[1]}")
    both = np.concatenate([scores["edu_science"], scores["maths"]])
    planted = np.concatenate([scores[kind] for kind in junk if kind != "general_books"])
    print(f"both kinds of good text against all planted junk: {area(both, planted):.3f}")


if __name__ == "__main__":
    main()
