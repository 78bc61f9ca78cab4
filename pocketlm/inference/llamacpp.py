"""A .gguf file that answers in llama.cpp, on the CPU.

Shapes: T tokens, V vocabulary
"""

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pocketlm.inference.continuations import Scorer, common_beginning
from pocketlm.inference.decode import RowDecoder
from pocketlm.inference.gguf_header import head_width, read_header, weight_bytes, windows_of
from pocketlm.inference.gguf_scorer import TreeContext, gguf_scorer
from pocketlm.inference.gguf_tokenizer import tokenizer_of
from pocketlm.inference.libllama import CACHE_TYPES, Context, LoadedModel, padded
from pocketlm.inference.runtime import Memory, check_ids, log_probs_from
from pocketlm.inference.sampling import Sampling, sample
from pocketlm.inference.stop_strings import StopMatcher

BATCH_TOKENS = 512  # tokens of one call, llama.cpp's own default for a physical batch
LOGITS_BYTES = 2**28  # but no more than this many bytes of logits at once
SLOTS = 8  # prompts that are answered together
SHARED_IDS = 32  # that all prompts begin with, from which on they are read once


class GgufModel(RowDecoder):
    """A .gguf file, opened in llama.cpp on the CPU; nothing but the file is needed.

    context_length: longest sequence, the file's own by default. threads: half of the processors by
    default, for two hyperthreads share one multiplier. cache_type: the numbers of the KV cache, f16
    (llama.cpp's own default) or f32 (no rounding anywhere).
    """

    def __init__(
        self,
        path: Path,
        *,
        context_length: int | None = None,
        threads: int | None = None,
        cache_type: str = "f16",
    ) -> None:
        if cache_type not in CACHE_TYPES:
            raise ValueError(f"unknown cache_type {cache_type!r}; known: {', '.join(CACHE_TYPES)}")
        header = read_header(path)
        self.tokenizer = tokenizer_of(header)
        self.max_length = context_length or header.integer("{arch}.context_length")
        self.vocab_size = header.tensors["token_embd.weight"][0]
        self.threads = threads or max(1, (os.cpu_count() or 1) // 2)
        self.cache_type = cache_type
        self.batch = max(SLOTS, min(BATCH_TOKENS, LOGITS_BYTES // (4 * self.vocab_size)))
        self._windows, self._weight_bytes = windows_of(header), weight_bytes(header)
        numbers = 2 * header["{arch}.attention.head_count_kv"] * head_width(header)
        # of one token's keys and values in one layer
        self._cell_bytes = numbers * (2 if cache_type == "f16" else 4)
        self._model = LoadedModel(header.path)
        self._contexts: list[Context] = []
        # not in use: a call borrows one, so calls never share a cache
        self._idle: list[Context] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _release, self._contexts, self._model)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids`."""
        self._check(ids)
        context = self._borrow(1, len(ids))
        try:
            chunks = list(self._prefill(context, 0, ids, every=True))
        finally:
            self._return(context)
        return np.concatenate(chunks)

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probability [T - 1] of each id but the first, one batch of llama.cpp at a time."""
        self._check(ids)
        context = self._borrow(1, len(ids))
        try:
            chunks = self._prefill(context, 0, ids, every=True)
            return log_probs_from(map(torch.from_numpy, chunks), ids)
        finally:
            self._return(context)

    def scorer(self) -> Scorer:
        """Trees of ids as sequences of one cache, each id in those of all texts that hold it."""
        return gguf_scorer(self._tree_context)

    def memory(self, length: int) -> Memory:
        """Bytes that llama.cpp allocates and that a token reads.

        A local layer has cells for its window and one batch (`llama_kv_cache_iswa`).
        """
        cells = padded(length)
        windows = [window for window in self._windows if window is not None]
        allocated = cells * self._windows.count(None) + sum(
            min(cells, padded(window + self.batch)) for window in windows
        )
        cells_read = length * self._windows.count(None) + sum(
            min(length, window) for window in windows
        )
        return Memory(
            kv_bytes=self._cell_bytes * allocated,
            step_bytes=self._weight_bytes + self._cell_bytes * cells_read,
        )

    def close(self) -> None:
        """Free the weights and caches; the model is of no use afterwards."""
        self._finalizer()

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs. A slot whose answer has ended takes the next prompt, so all stay
        busy.
        """
        for prompt in prompts:
            self._check(prompt)
        if not prompts or max_new_tokens < 1:
            return
        longest = min(max(len(p) for p in prompts) + max_new_tokens, self.max_length)
        shared = common_beginning(prompts) if len(prompts) > 1 else 0
        shared = shared if shared >= SHARED_IDS else 0
        context = self._borrow(min(len(prompts), SLOTS) + bool(shared), longest)
        # the last slot holds what is shared, and every prompt goes on from a copy
        places = range(context.slots - bool(shared))
        generators = sampling.generators(len(prompts))
        texts = [list(prompt) for prompt in prompts]  # and what was made
        endings = (
            [StopMatcher(self.tokenizer, stop_strings) for _ in prompts] if stop_strings else []
        )
        lengths = [len(p) for p in prompts]
        waiting = [row for row in reversed(range(len(prompts))) if lengths[row] < self.max_length]
        running: dict[int, tuple[int, int]] = {}  # slot -> (row, its newest id)
        try:
            if shared:
                list(self._prefill(context, len(places), prompts[0][:shared], every=False))
            while waiting or running:
                slots = list(running)
                rows = [row for row, _ in running.values()]
                logits = []
                if running:
                    ids = [token for _, token in running.values()]
                    made = context.run(ids, [lengths[row] - 1 for row in rows], slots, True)
                    # a prompt below would overwrite them
                    logits.append(made.copy() if waiting else made)
                for slot in places:
                    if waiting and slot not in running:
                        slots.append(slot)
                        rows.append(waiting.pop())
                        prompt = prompts[rows[-1]]
                        logits.extend(
                            self._prefill(context, slot, prompt, every=False, shared=shared)
                        )
                newest = torch.from_numpy(logits[0] if len(logits) == 1 else np.concatenate(logits))
                chosen = sample(
                    newest,
                    sampling,
                    [generators[row] for row in rows],
                    [texts[row] for row in rows],
                )
                running = {}
                for slot, row, token in zip(slots, rows, chosen.tolist(), strict=True):
                    if token in stop_ids:
                        continue
                    texts[row].append(token)
                    yield row, token
                    lengths[row] += 1
                    if endings and endings[row].reached(token):
                        continue
                    if lengths[row] < min(len(prompts[row]) + max_new_tokens, self.max_length):
                        running[slot] = (row, token)
        finally:
            self._return(context)

    def _prefill(
        self, context: Context, slot: int, ids: Sequence[int], *, every: bool, shared: int = 0
    ) -> Iterator[np.ndarray]:
        """The logits of a prompt, in pieces: after every token, or only after the last one. shared:
        how many of its ids the context's last slot holds.
        """
        context.forget(slot)
        if shared:
            context.lib.llama_memory_seq_cp(context.memory, context.slots - 1, slot, -1, -1)
        for start in range(shared, len(ids), context.batch):
            piece = np.array(ids[start : start + context.batch])
            positions = np.arange(start, start + len(piece))
            wanted = np.full(len(piece), every)
            wanted[-1] |= start + len(piece) == len(ids)
            logits = context.run(piece, positions, slot, wanted)
            if len(logits):
                yield logits.copy()

    def _check(self, ids: Sequence[int]) -> None:
        check_ids(
            ids,
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            limit=f"the context of {self.max_length}",
            advice="open the file with a longer context_length",
        )

    def _borrow(self, slots: int, length: int) -> Context:
        """A context with so much room: an idle one, or a new one in the place of one that is too
        small.
        """
        if not self._finalizer.alive:
            raise ValueError("this GgufModel was closed; open the file again")
        with self._lock:
            if self._idle:
                context = self._idle.pop()
                if context.slots >= slots and context.length >= length:
                    return context
                self._contexts.remove(context)
                context.close()
            context = Context(
                self._model,
                slots=slots,
                length=length,
                batch=self.batch,
                threads=self.threads,
                cache_type=self.cache_type,
            )
            self._contexts.append(context)
            return context

    def _tree_context(self, length: int, before: TreeContext | None) -> TreeContext:
        """One with so much room, in the place of the one before."""
        if not self._finalizer.alive:
            raise ValueError("this GgufModel was closed; open the file again")
        with self._lock:
            if before is not None:
                self._contexts.remove(before)
                before.close()
            context = TreeContext(
                self._model,
                length=length,
                batch=self.batch,
                threads=self.threads,
                cache_type=self.cache_type,
            )
            self._contexts.append(context)
            return context

    def _return(self, context: Context) -> None:
        with self._lock:
            self._idle.append(context)


def _release(contexts: list[Context], model: LoadedModel) -> None:
    for context in contexts:
        context.close()
    model.close()
