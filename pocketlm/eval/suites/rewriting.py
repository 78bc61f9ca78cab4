"""Texts that a model rewrites or sums up, scored by ROUGE-L: Open-Rewrite and TLDR9+, as the Llama
3.2 card names them. The card's prompts are not published: ours are our choice.
"""

from __future__ import annotations

from pocketlm.eval.rouge import rouge_l
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.model.json_shape import TEXT, JsonObject

RUN_ONS = ("\nText:", "\nPost:", "\n\n\n")  # a base model goes on to the next problem


def _open_rewrite(row: JsonObject) -> Problem:
    """A row of openrewriteeval_aaai24.csv: comment (the instruction), source, target, task."""
    comment, source = row.typed("comment", TEXT), row.typed("source", TEXT)
    return Problem(
        id="",
        family=row.typed("task", TEXT, ""),
        prompt=f"{comment.strip()}\n\nText: {source.strip()}",
        answer=row.typed("target", TEXT),
    )


def _tldr9(row: JsonObject) -> Problem:
    """A row of TLDR9+: document and summary."""
    return Problem(
        id=str(row.get("id", "")),
        family="",
        prompt=row.typed("document", TEXT).strip(),
        answer=row.typed("summary", TEXT).strip(),
    )


def _rows(file: str, dataset: str, split: str, problem: object, source: str) -> Rows:
    return Rows(
        file=file,
        dataset=dataset,
        config=None,
        split=split,
        problem=problem,  # type: ignore[arg-type]
        source=source,
    )


OPEN_REWRITE = _rows(
    "open_rewrite",
    "",
    "test",
    _open_rewrite,
    "the CSV of github.com/google-research/google-research, rewritelm/, a row a line as JSON",
)
TLDR_LINK = "TLDR9+ of github.com/sajastu/reddit_collector, lines with document and summary"
TLDR9_TEST = _rows("tldr9_test", "", "test", _tldr9, TLDR_LINK)
TLDR9_TRAIN = _rows("tldr9_train", "", "train", _tldr9, TLDR_LINK)

REWRITING = {
    suite.name: suite
    for suite in (
        Suite(
            name="open_rewrite",
            problems=OPEN_REWRITE,
            kind="generation",
            scorer=rouge_l,
            metric="rouge_l",
            constant_answer=False,
            prompt_format="{prompt}\n\nRewritten:",
            chat=True,
            stop_strings=RUN_ONS,
            max_new_tokens=512,
        ),
        Suite(
            name="tldr9",
            problems=TLDR9_TEST,
            shots_from=TLDR9_TRAIN,
            shots=1,
            kind="generation",
            scorer=rouge_l,
            metric="rouge_l",
            constant_answer=False,
            preamble="Sum up each post in one or two sentences.\n\n",
            prompt_format="Post: {prompt}\nSummary:",
            chat=True,
            stop_strings=RUN_ONS,
            max_new_tokens=512,
        ),
    )
}
