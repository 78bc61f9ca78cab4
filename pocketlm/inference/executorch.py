"""A .pte file that answers in ExecuTorch's Python runtime; `export/pte.py` writes one.

Shapes: T tokens, V vocabulary
"""

import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.continuations import Scorer, Tree, common_beginning, tree_scorer
from pocketlm.inference.decode import RowDecoder, decode
from pocketlm.inference.runtime import Memory, check_ids, log_probs_from
from pocketlm.inference.sampling import Sampling
from pocketlm.model.tokenizer import Tokenizer

# root offset, "ET12", "eh00", bytes of: this header, the program, all before the segments, the
# segments
HEADER = struct.Struct("<4x4s4sIQQQ")
# constant methods PteModel asks for
FACTS = {"get_max_context_len", "get_max_seq_len", "get_vocab_size"}
SIZES = {"get_weight_bytes", "get_kv_bytes", "get_kv_bytes_per_token"}  # and would like to know


class PteModel(RowDecoder):
    """A .pte file in ExecuTorch's Python runtime: one sequence at a time, the tokenizer from beside
    it.

    The cache is inside the program. Each answer starts again at position 0, where nothing of an
    earlier one is seen, or after what all prompts of a call begin with; answers that are streamed
    in turns take the cache from each other and read their text anew.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """threads: of ExecuTorch's pool, which all programs of the process share; its own choice by
        default.
        """
        path = Path(path)
        check_file(path)
        self.tokenizer = Tokenizer.load(tokenizer_folder(path))
        load_kernels()
        self._method, facts = _open(path, threads)
        self._facts = facts
        self.max_length = facts["get_max_context_len"]
        self.chunk = facts["get_max_seq_len"]
        self.vocab_size = facts["get_vocab_size"]
        cells = facts.get("get_kv_bytes_per_token", 0) * self.max_length
        self._all_global = cells == facts.get("get_kv_bytes")  # no layer keeps a window alone
        self._lock = threading.Lock()
        self._held: list[int] = []  # the ids that the cache holds; none where that is not known

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids`."""
        self._check(ids)
        with self._lock:
            return torch.cat(list(self._read(ids, 0))).numpy()

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probability [T - 1] of each id but the first, one call of the program at a time."""
        self._check(ids)
        with self._lock:
            return log_probs_from(self._read(ids, 0), ids)

    def scorer(self) -> Scorer:
        """One text of a tree after the other, each from where it leaves what the cache holds."""
        return tree_scorer(self._trees)

    def _trees(self, shared: Sequence[int], trees: Sequence[Tree]) -> Iterator[Tensor]:
        """The logits [N, V] of all queried nodes of one tree after the other."""
        for tree in trees:
            rows = tree.rows()
            if len(rows) == 1:  # maybe a whole text, whose logits are not held at once
                yield from self._one_text(shared, tree, rows[0])
                continue
            place = {node: number for number, node in enumerate(tree.queried)}
            logits = torch.empty(len(place), self.vocab_size)
            waiting = set(tree.queried)
            for row in rows:
                ids = [*shared, *(tree.ids[node] for node in row)]
                self._check(ids)
                first = next(depth for depth, node in enumerate(row) if node in waiting)
                with self._lock:
                    start = self._start(ids, len(shared) + first)
                    for chunk in self._read(ids, start):
                        for depth, after in enumerate(chunk, start - len(shared)):
                            if depth >= 0 and row[depth] in place:
                                logits[place[row[depth]]] = after
                        start += len(chunk)
                waiting -= set(row)
            yield logits

    def _one_text(self, shared: Sequence[int], tree: Tree, row: Sequence[int]) -> Iterator[Tensor]:
        """The logits of the queried nodes of a single text, call by call."""
        ids = [*shared, *(tree.ids[node] for node in row)]
        self._check(ids)
        at = torch.tensor(tree.queried) + len(shared)  # their positions: a node is its depth here
        with self._lock:
            start = self._start(ids, int(at[0]))
            for chunk in self._read(ids, start):
                yield chunk[at[(at >= start) & (at < start + len(chunk))] - start]
                start += len(chunk)

    def memory(self, length: int) -> Memory:
        """Bytes as the file's constant methods give them.

        The program has room for all its positions, however long the text; a token reads the global
        layers' cache so far, and the local rings whole.
        """
        weights, cache, token = (
            self._facts.get(name)
            for name in ("get_weight_bytes", "get_kv_bytes", "get_kv_bytes_per_token")
        )
        if weights is None or cache is None or token is None:
            return Memory(kv_bytes=cache, step_bytes=None)
        unseen = token * (self.max_length - length)
        return Memory(kv_bytes=cache, step_bytes=weights + cache - unseen)

    def close(self) -> None:
        """Free the program and its cache; the model is of no use afterwards."""
        self._method = None

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs, one prompt after the other."""
        for prompt in prompts:
            self._check(prompt)
        shared = common_beginning(prompts) if len(prompts) > 1 else 0
        for row, prompt in enumerate(prompts):
            drawn = replace(sampling, seed=sampling.seed + row)
            for token in self._decode_one(
                prompt, shared if row else 0, max_new_tokens, stop_ids, drawn, stop_strings
            ):
                yield row, token

    def _decode_one(
        self,
        prompt: Sequence[int],
        shared: int,
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[int]:
        """New ids, one run of the program each. shared: how many of the prompt's ids the prompts
        before it began with.
        """
        ids = list(prompt)

        def last_logits(most: int) -> Tensor:
            with self._lock:
                *_, rows = self._read(ids, self._start(ids, most))
            return rows[-1:]

        def step(tokens: Tensor, keep: Tensor | None) -> Tensor:
            ids.append(int(tokens))
            return last_logits(len(ids) - 1)

        pairs = decode(
            [prompt],
            lambda: last_logits(shared),
            step,
            room=[min(max_new_tokens, self.max_length - len(ids))],
            tokenizer=self.tokenizer,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
            sampling=sampling,
        )
        return (token for _, token in pairs)

    def read(self, ids: Sequence[int], text: list[int] | None = None) -> tuple[Tensor, list[int]]:
        """(logits [1, V] after `ids`, the text so far), which go on with `text`, what an earlier
        call gave; ids are appended to it. What the cache still holds of that text is not read
        again.
        """
        text = [] if text is None else text
        before = len(text)
        text.extend(ids)
        with self._lock:
            *_, rows = self._read(text, self._start(text, before))
        return rows[-1:], text

    def _start(self, ids: Sequence[int], most: int) -> int:
        """From where on these ids must be read: after those that the cache holds, at most so many.

        A local layer's ring has room for a call beside its window: what was overwritten further
        back is read anew.
        """
        most = min(most, len(self._held))
        start = next((i for i in range(most) if ids[i] != self._held[i]), most)
        return start if self._all_global or len(self._held) - start < self.chunk else 0

    def _read(self, ids: Sequence[int], start: int) -> Iterator[Tensor]:
        """Run the program on ids from `start` on, those before it being in the cache; the logits of
        each call, [up to `chunk`, V].
        """
        if self._method is None:
            raise ValueError("this PteModel was closed; open the file again")
        self._held = []  # should the run be interrupted
        for first in range(start, len(ids), self.chunk):
            tokens = torch.tensor([ids[first : first + self.chunk]])
            yield self._method.execute((tokens, torch.tensor([first])))[0][0]
        self._held = list(ids)

    def _check(self, ids: Sequence[int]) -> None:
        check_ids(
            ids,
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            limit=f"the {self.max_length} this .pte file was exported for",
            advice="export with a longer context_length",
        )


def tokenizer_folder(path: Path) -> Path:
    """Where the tokenizer of a .pte file lies."""
    return path.with_name(f"{path.stem}.tokenizer")


def check_file(path: Path) -> None:
    """Raise FileNotFoundError or a ValueError that names the file, if it is no whole ExecuTorch
    program.

    ExecuTorch checks the graph, but reads the weights behind it only when it runs; the header of a
    program that has weights says how long the file should be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no .pte file at {path}")
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[4:6] != b"ET":
        raise ValueError(f"{path}: not an ExecuTorch program; write one with `pocketlm export`")
    _, extension, _, program_bytes, segments_start, segments_bytes = HEADER.unpack(head)
    size, whole = path.stat().st_size, max(program_bytes, segments_start + segments_bytes)
    if extension == b"eh00" and size < whole:
        raise ValueError(f"{path}: truncated, {size} of {whole} bytes; copy or export it again")


def _open(path: Path, threads: int | None) -> tuple[Any, dict[str, int]]:
    """(`forward`, the facts) of a program; what ExecuTorch refuses is a ValueError with the file's
    name.
    """
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    try:
        with quiet(), silent_stderr():
            if threads:
                # before a program that would hold on to the old one
                _unsafe_reset_threadpool(threads)
            program = Runtime.get().load_program(path)
            methods: dict[str, Any] = {n: program.load_method(n) for n in program.method_names}
            values = {name: methods[name].execute(()) for name in (FACTS | SIZES) & methods.keys()}
    except RuntimeError as error:
        raise ValueError(
            f"{path}: ExecuTorch cannot load it ({error}); export it again here"
        ) from None
    if (
        not values.keys() >= FACTS
        or "forward" not in methods
        or methods["forward"].metadata.num_inputs() != 2
    ):
        raise ValueError(
            f"{path}: no language model with its cache inside; write one with `pocketlm export`"
        )
    return methods["forward"], {name: int(value[0]) for name, value in values.items()}


def load_kernels() -> None:
    """Register ExecuTorch's attention and 4-bit embedding, needed to write a program and to run
    one.
    """
    with quiet():
        try:
            import executorch.kernels.quantized  # noqa: F401
            import torchao.quantization.quant_primitives  # noqa: F401
            from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"a .pte file needs ExecuTorch: pip install 'pocketlm[executorch]' ({error})"
            ) from None


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Nothing on file descriptor 2 meanwhile: the C++ runtime logs there how it counts the
    processors.
    """
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings from ExecuTorch and torchao: about their own deprecations and absent CUDA
    kernels.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
