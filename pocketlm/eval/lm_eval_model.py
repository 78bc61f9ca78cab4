"""lm-eval's tasks on any runtime: its prompts, cuts, filters and metrics, our computation.

    results = run_tasks(model, ["tasks/mine.yaml"], limit=100)

A folder, a .gguf and a .pte are asked alike. lm-eval itself (0.4.13) is an extra.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import (
    get_rolling_token_windows,
    handle_non_serializable,
    make_disjoint_window,
    make_table,
)
from rich.console import Console
from rich.progress import Progress

from pocketlm.eval.likelihood import shortened
from pocketlm.inference.continuations import Pair, Scored, common_beginning
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.sampling import Sampling

MAX_NEW_TOKENS = 256  # where a task names no limit, as in lm-eval's hf backend
BATCH = 32  # prompts that are answered together
SHARED_IDS = 32  # a beginning of so many ids, and half of the shorter text, is read once
PROBLEMS = 64  # that are scored before the bar moves on
DRAWN_BY = ("top_k", "top_p", "min_p", "repetition_penalty")
Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, context, continuation


class RuntimeLM(TemplateLM):
    """A Runtime as lm-eval asks it. Encoding is lm-eval's own rule over our tokenizer, which reads
    special words as tokens here, as transformers does.
    """

    def __init__(self, model: Runtime) -> None:
        super().__init__()
        self.model = model
        self.tokenizer: Any = model.tokenizer
        self.truncated = 0  # texts that lost their beginning
        self._encoded: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return "pocketlm"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, after the bos where transformers puts one, which is never doubled."""
        tokenizer = self.model.tokenizer
        if string not in self._encoded:
            if len(self._encoded) > 10_000:
                self._encoded.clear()
            self._encoded[string] = tokenizer.encode_rendered([string])[0]
        ids = list(self._encoded[string])
        wanted = tokenizer.adds_bos if add_special_tokens is None else add_special_tokens
        bos = tokenizer.bos_id
        return [bos, *ids] if wanted and bos is not None and ids[:1] != [bos] else ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text. Without a generation prompt the last message is an answer that
        is begun, and goes on.
        """
        if add_generation_prompt:
            return self.model.tokenizer.render(chat_history, add_generation_prompt=True)
        *before, begun = chat_history
        return self.model.tokenizer.render(before, add_generation_prompt=True) + begun["content"]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """By lm-eval's own cut between context and continuation; the bar is ours."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether it is what the model would write) of each continuation."""
        pairs = [self._pair(context, ids) for _, context, ids in requests]
        scores: dict[int, Scored] = {}
        score = self.model.scorer()
        with _bar("log-likelihoods", len(pairs)) as advance:
            for shared, problems in problems_of(pairs):
                problem_pairs = [[pairs[number] for number in numbers] for numbers in problems]
                for numbers, scored in zip(problems, score(problem_pairs, shared), strict=True):
                    scores |= zip(numbers, scored, strict=True)
                    advance(len(numbers))
        answers = [(scores[n].log_prob, scores[n].greedy) for n in range(len(requests))]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _pair(self, context: list[int], ids: list[int]) -> Pair:
        """As the model can read it: where one id spans the join of both, it is the continuation
        (our choice: lm-eval stops), and what is too long loses its beginning.
        """
        if not ids:
            context, ids = context[:-1], context[-1:]
        if not context:
            context = [self.prefix_token_id]
        pair = shortened((context, ids), self.model.max_length)
        self.truncated += pair != (context, ids)
        return pair

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text, in windows of the model's length."""
        windows: list[Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            parts = get_rolling_token_windows(ids, self.prefix_token_id, self.model.max_length, 1)
            before = len(windows)
            windows += [(None, *make_disjoint_window(part)) for part in parts]
            counts.append(len(windows) - before)
        sums = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(sums)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context. A drawn answer's seed is its place among the
        requests of its kind ordered by length, so that repeats of a document differ.
        """
        by_options: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_options.setdefault(repr(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for numbers in by_options.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1], MAX_NEW_TOKENS)
            with _bar("answers", len(numbers)) as advance:
                for number, text in self._written([requests[n].args[0] for n in numbers], options):
                    texts[numbers[number]] = text
                    advance(1)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _written(self, contexts: Sequence[str], options: Any) -> Iterator[tuple[int, str]]:
        """(number, answer) of contexts that are asked with the same options."""
        sampling, until, limit = self._limits(dict(options))
        room = self.model.max_length - limit
        if room < 1:
            raise ValueError(
                f"the task asks for {limit} new tokens, the model reads {self.model.max_length}; "
                "give a model with a longer context"
            )
        encoded = [self.tok_encode(context) for context in contexts]
        self.truncated += sum(len(ids) > room for ids in encoded)
        order = sorted(range(len(contexts)), key=lambda number: (len(encoded[number]), number))
        for first in range(0, len(order), BATCH):
            numbers = order[first : first + BATCH]
            answers = self.model.generate(
                [encoded[number][-room:] for number in numbers],
                max_new_tokens=limit,
                stop_ids=self.model.tokenizer.stop_ids,
                stop_strings=until,
                sampling=Sampling(**sampling, seed=first),
            )
            for number, ids in zip(numbers, answers, strict=True):
                text = self.model.tokenizer.decode(ids)
                yield number, postprocess_generated_text(text, list(until), None)

    def _limits(self, options: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], int]:
        """(sampling, texts that end an answer, most new tokens); ValueError for what is not known
        here.
        """
        until, limit = options.pop("until", None) or [], options.pop("max_gen_toks")
        drawn, temperature = options.pop("do_sample", False), options.pop("temperature", 0.0)
        sampling = {"temperature": float(temperature) if drawn else 0.0}
        for name in DRAWN_BY:
            value = options.pop(name, None)
            if value is not None and (drawn or name == "repetition_penalty"):
                sampling[name] = value
        if options:
            raise ValueError(
                f"a task asks to generate with {', '.join(sorted(options))}, which is not known "
                f"here; known: until, max_gen_toks, do_sample, temperature, {', '.join(DRAWN_BY)}"
            )
        return sampling, tuple(text for text in until if text), int(limit)


def problems_of(pairs: Sequence[Pair]) -> Iterator[tuple[list[int], list[list[int]]]]:
    """(ids that all contexts of some problems begin with, the numbers of each problem's pairs).

    Pairs of the same context are a problem. Problems are taken in the order of their ids, so that
    those with the same examples before them come together.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        by_context.setdefault(tuple(context), []).append(number)
    waiting: list[tuple[int, ...]] = []
    common = 0  # ids that all waiting contexts begin with
    for context in sorted(by_context):
        if waiting:
            shared = common_beginning([waiting[-1], context])
            shared = min(common, shared) if common else shared
            worth = 2 * shared >= min(len(context), len(waiting[-1])) and shared >= SHARED_IDS
            if not worth or len(waiting) == PROBLEMS:
                yield list(waiting[0][:common]), [by_context[before] for before in waiting]
                waiting = []
            common = shared if worth else 0
        waiting.append(context)
    if waiting:
        yield list(waiting[0][:common]), [by_context[before] for before in waiting]


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """What moves a progress bar on, on stderr where that is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"  {what}", total=total)
        yield lambda count: progress.advance(task, count)


def run_tasks(model: Runtime, tasks: Sequence[str], limit: int | None = None) -> dict[str, Any]:
    """lm-eval's results of these tasks: its names, or .yaml files of tasks. ValueError: a task that
    cannot be loaded or asked.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = RuntimeLM(model)
    files_alone = all(task.endswith((".yaml", ".yml")) for task in tasks)
    try:
        # the index of all its tasks takes most of a minute
        manager = TaskManager(include_defaults=not files_alone)
        results = simple_evaluate(
            lm, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=True
        )
    except MemoryError:
        raise
    except Exception as error:  # tasks are code and data of others, and raise whatever they meet
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"lm-eval cannot run {', '.join(tasks)}: {reason}") from error
    assert results is not None  # rank 0
    results["truncated"] = lm.truncated
    return results


def table_of(results: dict[str, Any]) -> str:
    """lm-eval's own table, and that of its groups."""
    parts = [make_table(results)]
    if "groups" in results:
        parts.append(make_table(results, "groups"))
    return "\n".join(parts)


def as_json(content: Any, indent: int | None = None) -> str:
    """What lm-eval hands out, functions and numpy's numbers among it, as JSON."""
    return json.dumps(content, indent=indent, default=handle_non_serializable)
