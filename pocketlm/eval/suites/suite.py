"""What a suite is: its problems, how they are put to a model, where an answer ends, how it is
scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pocketlm.inference.sampling import GREEDY, Sampling
from pocketlm.sandbox.judge import Cases, Task

# generation: the model writes an answer. choices: the log-likelihoods of given answers are
# compared. bits_per_byte: that of the right answer alone is measured
Kind = Literal["generation", "choices", "bits_per_byte"]
# what stands before a plain prompt. document: the tokenizer's document_start, as in training.
# tokenizer: what transformers adds to a text by itself, often nothing (lm-eval's rule)
Prefix = Literal["document", "tokenizer"]
Scores = dict[str, float]  # metric -> figure of one document
ANSWER_SEPARATOR = " "  # lm-eval's target_delimiter: between a prompt and its answer
# how Suite.sources says that a field is not the paper's, or that the paper does not name it
DIFFERS, NOT_FOUND = "differs", "not found"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One document of a suite.

    family: its group, as MMLU's subject. prompt: what the prompt format takes. answer: the right
    answer; of a shot, what stands after its prompt. accepted: all answers that count as right,
    where there are several. choices: the answers to compare, of which number `gold` is right.
    contexts: a prompt for each choice, where a choice stands inside it (WinoGrande). task: the
    tests that a program must pass. expected: what else a scorer compares an answer with
    (instructions to follow, function calls).
    """

    id: str
    family: str
    prompt: str
    answer: str
    accepted: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    gold: int = 0
    contexts: tuple[str, ...] = ()
    task: Task | Cases | None = None
    expected: Any = None


class Problems(Protocol):
    """Where problems come from: drawn, a user's file, or rows of a benchmark."""

    def load(self, data: Path | None) -> Iterable[Problem]:
        """All problems in order. `data`: the folder with the benchmarks' files; None reads the
        hub.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One benchmark with all that makes its figures comparable.

    scorer: (problem, answer) -> scores, where answer is the text (generation) or the summed natural
    log-probability of each continuation (choices, bits_per_byte). metric: the score that is the
    suite's figure. macro: the mean of the families' means instead of the mean of all documents.
    weighted_by: of a score that is a share, the score that counts of how many, so that its figure
    is over all of them. mean_of: the figures whose mean the metric is, where it is one.
    constant_answer: whether an answer could be right without reading, as a number can.
    prompt_format: "{prompt}" stands for the problem's, "{family}" in `preamble` for its family.
    chat: a model with a chat template gets the prompt as a user turn, and of bits_per_byte the
    answer as the assistant's. stop_strings end the answer to a plain prompt; a turn ends by its own
    token. shots: the first so many of `shots_from`, or of those of the problem's own family where
    shots_by_family. sampled: where there are more than half as many again, so many problems are
    drawn (OLMES's rule and seed). shortened: a prompt that the model is too short for loses its
    beginning, and is counted, where it would be refused. unconditional: the prompt without a
    question, "" for none: each choice is scored behind it too (acc_pmi: OLMES). samples: answers to
    each problem, whose mean counts; pass_at: for which k pass@k is estimated from them. runs_code:
    answers are programs for the sandbox, and keep the spaces that they begin with. protocol_name:
    of which protocol this is a row; sources: for each field, where the paper or program says so, or
    that it is not found.
    """

    name: str
    problems: Problems
    kind: Kind
    scorer: Callable[[Problem, Any], Scores]
    metric: str
    macro: bool = False
    weighted_by: Mapping[str, str] = field(default_factory=dict)
    mean_of: tuple[str, ...] = ()
    constant_answer: bool = True
    prompt_format: str = "Question: {prompt}\nAnswer:"
    preamble: str = ""
    prefix: Prefix = "document"
    chat: bool = False
    shots: int = 0
    shots_from: Problems | None = None
    shots_by_family: bool = False
    sampled: int = 0
    shortened: bool = False
    unconditional: str = ""
    shot_separator: str = "\n\n"  # lm-eval's fewshot_delimiter
    stop_strings: tuple[str, ...] = ()
    answer_separator: str = ANSWER_SEPARATOR
    max_new_tokens: int = 160
    sampling: Sampling = GREEDY
    samples: int = 1
    pass_at: tuple[int, ...] = ()
    runs_code: bool = False
    protocol_name: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shots < 0 or (self.shots and self.shots_from is None):
            raise ValueError(
                f"suite {self.name}: {self.shots} shots need problems to take them from "
                "(shots_from)"
            )
        if self.kind == "generation" and self.max_new_tokens < 1:
            raise ValueError(
                f"suite {self.name}: max_new_tokens {self.max_new_tokens} leaves no answer"
            )
        if self.samples < 1 or not all(1 <= k <= self.samples for k in self.pass_at):
            raise ValueError(
                f"suite {self.name}: {self.samples} samples give no pass@{self.pass_at}; take at "
                "least as many samples as the largest k"
            )

    def prompt(self, problem: Problem) -> str:
        """The problem in the suite's words, without shots."""
        return self.prompt_format.replace("{prompt}", problem.prompt)

    def before(self, problem: Problem, shots: Iterable[Problem]) -> str:
        """What stands before the problem's own prompt: the preamble, and shots with answers."""
        family = problem.family.replace("_", " ")
        written = (
            f"{self.prompt(shot)}{self.answer_separator}{shot.answer}{self.shot_separator}"
            for shot in shots
        )
        return self.preamble.replace("{family}", family) + "".join(written)

    def protocol(self) -> dict[str, Any]:
        """The fields that a figure of this suite depends on, for its result row."""
        fields: dict[str, Any] = {
            "kind": self.kind,
            "metric": self.metric,
            "average": "families" if self.macro else "documents",
            "prompt_format": self.prompt_format,
            "prefix": self.prefix,
            "chat": self.chat,
            "shots": self.shots,
        }
        if self.sampled:
            fields["sampled"] = self.sampled
        if self.shortened:
            fields["shortened"] = True
        if self.unconditional:
            fields["unconditional"] = self.unconditional
        if self.preamble:
            fields["preamble"] = self.preamble
        if self.kind == "generation":
            fields |= {
                "stop_strings": list(self.stop_strings),
                "max_new_tokens": self.max_new_tokens,
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
            }
        if self.answer_separator != ANSWER_SEPARATOR:
            fields["answer_separator"] = self.answer_separator
        if self.samples > 1:
            fields |= {"samples": self.samples, "pass_at": list(self.pass_at)}
        if self.protocol_name:
            fields |= {"protocol": self.protocol_name, "sources": dict(self.sources)}
        return fields
