"""Named protocols: lists of suites with the shots and the form that a paper or program gives them.

Each row says where its fields come from, and "not found" where the paper does not say: a figure of
such a row is not the paper's figure, and the field is shown instead. R1: arXiv 2509.24945. Pro:
arXiv 2511.06719. Card: meta-llama/llama-models@a9c89c4, models/llama3_2/MODEL_CARD.md and
eval_details.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pocketlm.eval.scorers import bits_per_byte, r1_math
from pocketlm.eval.suites.choices import CHOICES
from pocketlm.eval.suites.code import CODE
from pocketlm.eval.suites.gold_answers import GOLD_ANSWERS
from pocketlm.eval.suites.instructions import IFEVAL
from pocketlm.eval.suites.olmes_shots import SHOTS, curated_shots
from pocketlm.eval.suites.own_problems import POCKET, SOLUTIONS
from pocketlm.eval.suites.rewriting import REWRITING
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.ruler import NEEDLES
from pocketlm.eval.suites.suite import Suite
from pocketlm.eval.suites.tools import TOOLS
from pocketlm.eval.suites.written import WRITTEN
from pocketlm.inference.sampling import Sampling

OURS = {suite.name: suite for suite in (POCKET, SOLUTIONS)}
SUITES: dict[str, Suite] = {
    **{**OURS, **CHOICES, **WRITTEN, **CODE, **IFEVAL, **REWRITING, **TOOLS},
    NEEDLES.name: NEEDLES,
}

LM_EVAL = "lm-eval 0.4.13"
QUESTION = "Question: {prompt}\nAnswer:"  # OLMES, for all but those that go on a text
COMMONSENSE = (  # R1, table 13, in its order
    "arc_easy",
    "arc_challenge",
    "boolq",
    "piqa",
    "siqa",
    "hellaswag",
    "openbookqa",
    "winogrande",
)
R1_HARNESS = f"not found: R1 released no evaluation of base models; {LM_EVAL}'s form here"


def _under(protocol: str, name: str, sources: Mapping[str, str], **fields: Any) -> Suite:
    suite = SUITES[name]
    return replace(
        suite, name=f"{protocol}.{name}", protocol_name=protocol, sources=dict(sources), **fields
    )


def _r1_base() -> list[Suite]:
    base = {"prompt_format": R1_HARNESS, "scorer": R1_HARNESS}
    zero = {"shots": "R1, table 13: 0-shot", "metric": "R1, section 7: acc", **base}
    rows = [_under("r1-base", name, zero, metric="acc", shots=0) for name in COMMONSENSE]
    five = {"shots": "R1, table 6: 5-shot", "metric": "R1: acc", **base}
    eight = {"shots": "R1, table 6: 8-shot; which: not found", "metric": "R1: em", **base}
    four = {"shots": "R1, table 6: 4-shot; which: not found", "metric": "R1: em", **base}
    three = {"shots": "R1, table 6: 3-shot; which: not found", "metric": "R1: pass@1", **base}
    none = {"shots": "R1, table 6: 0-shot", "metric": "R1: pass@1", **base}
    return [
        *rows,
        _under("r1-base", "mmlu", five, shots=5),
        _under("r1-base", "gsm8k", eight, shots=8),
        _under("r1-base", "math500", four, shots=4),
        _under("r1-base", "mbpp", three),
        _under("r1-base", "humaneval", none),
    ]


def _r1_final() -> list[Suite]:
    """R1 after post-training: mathematics in the model's own chat template, which asks for a boxed
    answer, and LiveCodeBench.
    """
    code = "facebookresearch/MobileLLM-R1@cfc816c, evaluation/"
    sources = {
        "shots": "R1, table 7: 0-shot",
        "prompt_format": f"{code}: the problem alone, in the chat template",
        "sampling": f"{code}README.md: T 0.6, top-p 0.95, seed 0, one sample",
        "max_new_tokens": f"{code}README.md: 30,000",
        "extraction": f"{code}parser.py",
        "scorer": f"differs: {code}grader.py compares by its own rules; math-verify here",
    }
    fields: dict[str, Any] = {
        "shots": 0,
        "shots_from": None,
        "prompt_format": "{prompt}",
        "chat": True,
        "stop_strings": (),
        "max_new_tokens": 30_000,
        "sampling": Sampling(temperature=0.6, top_p=0.95),
        "scorer": r1_math,
        "metric": "math_verify",
    }
    live = {
        "shots": "R1, table 5: 0-shot",
        "problems": "R1, table 5: v6; which months: not found; all of release v6 here",
        "samples": "R1, table 5: the mean of 16",
        "prompt_format": "not found; LiveCodeBench's here, its system text before the question",
        "sampling": "not found; that of R1's mathematics here",
        "max_new_tokens": "not found; that of R1's mathematics here",
        "packages": "differs: a program sees the standard library alone, no numpy",
    }
    drawn = {name: fields[name] for name in ("stop_strings", "max_new_tokens", "sampling")}
    many = {**sources, "sampling": f"{code}README.md: T 0.6, top-p 0.95, seed 0, mean of 64"}
    return [
        *(_under("r1-final", name, sources, **fields) for name in ("gsm8k", "math500")),
        *(_under("r1-final", name, many, **fields) for name in ("aime24", "aime25")),
        _under("r1-final", "livecodebench", live, samples=16, **drawn),
    ]


def _pro_base() -> list[Suite]:
    """Pro's table 4. Its Gemma column is copied from Gemma 3's card, so its shots are likely the
    card's; the report does not say.
    """
    card = "Gemma 3's card; that Pro used the same: likely, not found"
    shots = {
        "hellaswag": 10,
        "boolq": 0,
        "piqa": 0,
        "siqa": 0,
        "arc_challenge": 25,
        "arc_easy": 0,
        "winogrande": 5,
        "triviaqa": 5,
        "nq_open": 5,
    }
    form = {"prompt_format": f"not found; {LM_EVAL}'s here", "metric": "not found"}
    rows = [
        _under("pro-base", name, {"shots": card, **form}, shots=count)
        for name, count in shots.items()
    ]
    unknown = {"shots": "not found (not on Gemma 3's card)", **form}
    needles = {
        "shots": "Card: 0-shot, whose figure Pro's table 4 repeats",
        "lengths": "Card: ten, evenly spaced from 2,000 to 131,072 tokens",
        "max_new_tokens": "Card: 256",
        "needles": "differs: the card's texts and trials are not found; RULER's words here, four "
        "needles hidden and two asked for, five trials at each length",
    }
    return [
        *rows,
        _under("pro-base", "openbookqa", unknown, shots=0),
        _under("pro-base", "needles", needles),
    ]


def _pro_instruct() -> list[Suite]:
    """Pro's table 7, whose Llama column is the Llama 3.2 card's: the card's protocol, task by
    task.
    """
    letter = "differs: the card's models write the letter; its log-likelihood here"
    mmlu = {"shots": "Card: 5-shot", "metric": "Card: macro average", "kind": letter}
    arc = {"shots": "Card: 0-shot", "metric": "Card: acc", "kind": letter}
    gsm = {
        "shots": "Card: 8-shot with reasoning; which: not found",
        "max_new_tokens": "Card: 1,024",
        "scorer": "not found; the last number here",
    }
    maths = {
        "problems": "differs: the card takes all of MATH; its 500 problems here",
        "shots": "Card: 0-shot",
        "max_new_tokens": "Card: 5,120",
        "scorer": "not found; math-verify here",
    }
    code = {"shots": f"not found; {LM_EVAL}'s here", "prompt_format": "not found"}
    tools = {
        "shots": "Card: 0-shot",
        "prompt_format": "differs: the words of BFCL's repository at commit 70d6722; ours here",
        "problems": "which summary over the trees the card takes: not found; non-live, Python here",
    }
    rewriting = {
        "shots": "Card: 0-shot",
        "metric": "Card: ROUGE-L over all documents; stemming: not found, none here",
        "max_new_tokens": "Card: 512",
        "prompt_format": "not found; ours here",
    }
    four = {"shots": "0: the prompt alone", "metric": "Card: the mean of the four"}
    return [
        _under("pro-instruct", "mmlu", mmlu, macro=True),
        _under("pro-instruct", "ifeval", four),
        _under("pro-instruct", "arc_challenge", arc, metric="acc"),
        _under("pro-instruct", "hellaswag", {**arc, "metric": "Card: acc"}, metric="acc"),
        _under(
            "pro-instruct",
            "gsm8k",
            gsm,
            shots=8,
            max_new_tokens=1024,
            metric="flexible_extract",
            chat=True,
        ),
        _under(
            "pro-instruct",
            "math500",
            maths,
            shots=0,
            max_new_tokens=5120,
            chat=True,
            prompt_format="{prompt}",
        ),
        *(_under("pro-instruct", name, code) for name in ("humaneval", "mbpp")),
        _under("pro-instruct", "bfcl", tools),
        _under("pro-instruct", "open_rewrite", rewriting),
        _under("pro-instruct", "tldr9", {**rewriting, "shots": "Card: 1-shot; which: not found"}),
    ]


def _lm_eval() -> list[Suite]:
    """lm-eval's own definitions, its rule for what stands before a text included."""
    defined = f"{LM_EVAL}, tasks/"
    shots = "the first of the split; lm-eval draws them for each document, MMLU's excepted"
    return [
        _under("lm-eval", name, {"definition": defined, "shots": shots}, prefix="tokenizer")
        for name in (*CHOICES, "gsm8k", "triviaqa", "nq_open")
        if name != "csqa"  # its form there has letters
    ]


OLMES_METRICS = {  # allenai/OLMo-Eval, olmo_eval/tasks/olmes_v0_1, its completion form
    "arc_easy": "acc_norm",
    "arc_challenge": "acc_pmi",
    "boolq": "acc",
    "csqa": "acc_pmi",
    "hellaswag": "acc_norm",
    "openbookqa": "acc_pmi",
    "piqa": "acc_norm",
    "siqa": "acc_norm",
    "winogrande": "acc",
}
OLMES_SAMPLED = ("arc_easy", "boolq", "hellaswag", "piqa", "siqa")


def _olmes() -> list[Suite]:
    """OLMES v0.1 (arXiv 2406.08446): its five curated shots, its samples of 1,000, and for each
    benchmark the normalisation that is written there. Its form with letters is not here.
    """
    standard = "OLMES v0.1"
    rows = []
    for name, metric in OLMES_METRICS.items():
        sources = {
            "shots": f"{standard}: the first five of std_fewshot.py, by their ids or digests",
            "metric": f"differs: {standard} takes the better of two forms; the completion here",
        }
        sampled = 1000 if name in OLMES_SAMPLED else 0
        if sampled:
            sources["problems"] = f"{standard}: Random(1234).sample of 1,000"
        pmi = {"unconditional": "Answer:"} if metric == "acc_pmi" else {}
        form = {} if name in ("hellaswag", "winogrande", "boolq") else {"prompt_format": QUESTION}
        train = SUITES[name].shots_from
        assert isinstance(train, Rows)
        shots = {"shots": SHOTS, "shots_from": curated_shots(name, train)}
        rows.append(
            _under("olmes", name, sources, metric=metric, sampled=sampled, **shots, **form, **pmi)
        )
    return rows


def _bits_per_byte() -> list[Suite]:
    """The right answer's bits per byte: the figure that moves where a small model's accuracy is
    chance.
    """
    sources = {
        "definition": "after OLMES's bpb forms; the space before an answer counts (our choice)",
        "shots": "0: our choice",
    }
    fields: dict[str, Any] = {
        "kind": "bits_per_byte",
        "scorer": bits_per_byte,
        "metric": "bits_per_byte",
        "shots": 0,
    }
    names = [name for name in (*COMMONSENSE, "csqa", "gsm8k", "lambada") if name != "winogrande"]
    rows = [_under("bpb", name, sources, **fields) for name in names]
    return [*rows, *(replace(suite, sources=sources) for suite in GOLD_ANSWERS)]


PROTOCOLS: dict[str, tuple[Suite, ...]] = {
    "r1-base": tuple(_r1_base()),
    "r1-final": tuple(_r1_final()),
    "pro-base": tuple(_pro_base()),
    "pro-instruct": tuple(_pro_instruct()),
    "lm-eval": tuple(_lm_eval()),
    "olmes": tuple(_olmes()),
    "bpb": tuple(_bits_per_byte()),
}
PROTOCOLS["r1"] = PROTOCOLS["r1-base"] + PROTOCOLS["r1-final"]
PROTOCOLS["pro"] = PROTOCOLS["pro-base"] + PROTOCOLS["pro-instruct"]
BY_NAME = SUITES | {suite.name: suite for rows in PROTOCOLS.values() for suite in rows}
