"""A model opened for the server: which backend, how many answers side by side, how many threads."""

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from pocketlm.inference.executorch import PteModel
from pocketlm.inference.llamacpp import GgufModel
from pocketlm.inference.open import open_model
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.inference.transformers_runtime import TransformersModel
from pocketlm.model.same_tokens import vocabulary_differences
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.serve.backend import Backend
from pocketlm.serve.llama_backend import LlamaBackend
from pocketlm.serve.rows import CheckpointRows, OneRow
from pocketlm.serve.torch_backend import TorchBackend

SLOTS = 4  # answers side by side where nobody says how many, and memory allows; our choice
MEMORY_SHARE = 0.5  # of the memory free now, for keys and values
PROBED_TOKENS, PROBE_SECONDS = 12, 1.0  # of one number of threads
GAIN = 1.1  # more threads are taken for no less than this


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a model is opened; None leaves it to what is measured here. context: tokens of one
    conversation. slots: answers side by side. draft: a smaller .gguf that proposes tokens for a
    .gguf.
    """

    context: int | None = None
    slots: int | None = None
    threads: int | None = None
    runtime: str | None = None
    draft: Path | None = None

    def __post_init__(self) -> None:
        for name in ("context", "slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is below 1")


def open_backend(path: Path, opening: Opening) -> Backend:
    """The backend of a model. What was chosen and what does not fit is printed on stderr.

    ValueError for what cannot be opened, or more context or slots than the file has.
    """
    model = open_model(path, runtime=opening.runtime, threads=opening.threads)
    if (opening.context or 0) > model.max_length:
        raise ValueError(
            f"context {opening.context} is more than the {model.max_length} tokens that {path} "
            "reads; it can only be lowered"
        )
    model.max_length = opening.context or model.max_length
    if opening.draft is not None and not isinstance(model, GgufModel):
        raise ValueError(f"{path}: only a .gguf takes a draft model; export it to gguf first")
    if isinstance(model, LanguageModel):
        slots = opening.slots or affordable(model, SLOTS)
        return TorchBackend(model, CheckpointRows(model, slots), "checkpoint")
    if isinstance(model, GgufModel):
        return _llama(path, model, opening)
    assert isinstance(model, PteModel | TransformersModel)
    kind = "pte" if isinstance(model, PteModel) else "transformers"
    if (opening.slots or 1) > 1:
        raise ValueError(f"a {kind} answers one request after the other; leave slots out")
    return TorchBackend(model, OneRow(model), kind)


def _llama(path: Path, model: GgufModel, opening: Opening) -> Backend:
    slots = opening.slots or affordable(model, SLOTS)
    threads = opening.threads or fastest_threads(model)
    tokenizer, context = model.tokenizer, model.max_length
    if opening.draft is not None:
        refuse_draft(opening.draft, path, tokenizer)
    model.close()  # llama.cpp's server opens the file in a process of its own
    return LlamaBackend(
        path, tokenizer, context=context, slots=slots, threads=threads, draft=opening.draft
    )


def refuse_draft(draft: Path, path: Path, tokenizer: Tokenizer) -> None:
    """Nothing, or a ValueError where this file cannot propose tokens for the model at `path`: it is
    no .gguf, or has other words.
    """
    smaller = open_model(draft)
    try:
        if not isinstance(smaller, GgufModel):
            raise ValueError(f"{draft}: a draft model is a .gguf; export it to gguf first")
        differences = vocabulary_differences(tokenizer, smaller.tokenizer)
    finally:
        smaller.close()
    if differences:
        raise ValueError(
            f"{draft} cannot propose tokens for {path}: {'; '.join(differences)} ({path.name} "
            "first); take a model of the same tokenizer"
        )


def affordable(model: Runtime, most: int) -> int:
    """How many texts of full length, up to `most`, have room for their keys and values."""
    one = model.memory(model.max_length).kv_bytes
    room = MEMORY_SHARE * psutil.virtual_memory().available
    slots = max(1, min(most, int(room / one))) if one else most
    if slots < most:
        print(
            f"keys and values of one text of {model.max_length:,} tokens take {one:,} bytes, so "
            f"{slots} requests are answered side by side and not {most}; --context lowers it",
            file=sys.stderr,
        )
    return slots


def fastest_threads(model: GgufModel) -> int:
    """Threads for llama.cpp, measured now: one, or all cores but one.

    Never all of them. Its threads wait for each other by turning in circles at every layer, so one
    that has lost its core to another program holds up all the others: on two cores that others use,
    two threads made 1 token a second and one made 22.
    """
    most = max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 1) - 1)
    if most == 1:
        return 1
    seconds = {threads: token_seconds(model, threads) for threads in (1, most)}
    chosen = most if seconds[1] > GAIN * seconds[most] else 1
    measured = ", ".join(f"{n}: {1 / s:.1f} tokens/s" for n, s in seconds.items())
    print(f"threads of llama.cpp: {chosen} ({measured})", file=sys.stderr)
    return chosen


def token_seconds(model: GgufModel, threads: int) -> float:
    """Seconds of one token, the median of a few."""
    model.threads = threads
    stream = model.stream([0], max_new_tokens=PROBED_TOKENS + 1, stop_ids=set())
    next(stream)  # the context is made, and the weights are read
    times, start = [], time.perf_counter()
    for _ in stream:
        times.append(time.perf_counter() - start - sum(times))
        if sum(times) > PROBE_SECONDS:
            break
    stream.close()  # type: ignore[attr-defined]
    return statistics.median(times)
