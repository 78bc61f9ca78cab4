"""A checkpoint, a .pte or a folder in transformers as a backend: one thread owns the model.

In turns it takes in texts that wait, while a row is free, and makes one token of every row.
"""

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import AsyncGenerator
from typing import Literal

import torch
from torch import Tensor

from pocketlm.inference.runtime import Runtime
from pocketlm.inference.sampling import sample
from pocketlm.inference.stop_strings import StopMatcher
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.serve.backend import Piece, Score, Unavailable, Wanted
from pocketlm.serve.rows import Rows
from pocketlm.serve.token_bytes import token_bytes

FAILED = "the model failed while it answered; the server's terminal shows why"


class TorchBackend:
    """See `Backend`. `model` is closed with it; its rows are `rows`."""

    constrains = False

    def __init__(self, model: Runtime, rows: Rows, kind: str) -> None:
        self.kind, self.tokenizer, self.max_length = kind, model.tokenizer, model.max_length
        self.slots = rows.slots
        self._model, self._rows = model, rows
        self._waiting: queue.SimpleQueue[_Text | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    async def answer(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        text = _Text(wanted, self.tokenizer)
        self._waiting.put(text)
        try:
            while True:
                piece = await text.pieces.get()
                if piece is None:
                    raise Unavailable(FAILED)
                yield piece
                if piece.ended:
                    return
        finally:
            text.abandoned = True

    def healthy(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """The model ends its step, and is freed."""
        self._closed.set()
        self._waiting.put(None)
        self._thread.join()
        self._model.close()

    @torch.inference_mode()
    def _work(self) -> None:
        running: list[_Text] = []
        while not self._closed.is_set():
            try:
                self._turn(running)
            except Exception:  # whatever a runtime raises: those who wait must hear of it
                traceback.print_exc(file=sys.stderr)
                for text in running:
                    text.give(None)
                running.clear()
                self._rows.keep([])
        for text in running:
            text.give(None)

    def _turn(self, running: list["_Text"]) -> None:
        """One token for each running text, after those that wait have joined."""
        if running:
            logits = self._rows.step([text.newest for text in running])
            for text, row in zip(running, logits.split(1), strict=True):
                text.choose(row)
            self._drop(running)
        while len(running) < self.slots:
            try:
                text = self._waiting.get(block=not running)
            except queue.Empty:
                return
            if text is None:
                return
            if text.abandoned:
                continue
            running.append(text)
            text.choose(self._rows.join(text.wanted.ids, text.wanted.max_new_tokens))
            self._drop(running)

    def _drop(self, running: list["_Text"]) -> None:
        """Take out the texts that ended, and those whose reader has left."""
        rows = [row for row, text in enumerate(running) if not (text.ended or text.abandoned)]
        if len(rows) < len(running):
            running[:] = [running[row] for row in rows]
            self._rows.keep(rows)


class _Text:
    """One answer while it is made: written by the model's thread, read by the event loop's."""

    def __init__(self, wanted: Wanted, tokenizer: Tokenizer) -> None:
        self.wanted, self.tokenizer = wanted, tokenizer
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self.abandoned = False  # the reader is gone
        self.ended: Literal["stop", "length"] | None = None
        self.newest = -1
        self._loop = asyncio.get_running_loop()
        self._matcher = StopMatcher(tokenizer, wanted.stop_strings)
        self._ids = list(wanted.ids)  # and what was made
        self._generators: list[torch.Generator | None] | None = None

    def choose(self, logits: Tensor) -> None:
        """Draw the next token from logits [1, V], and hand on what it adds to the answer."""
        wanted = self.wanted
        if self._generators is None:
            self._generators = wanted.sampling.generators(1, logits.device)
        token = int(sample(logits, wanted.sampling, self._generators, [self._ids]))
        if token in wanted.stop_ids:
            self.ended = "stop"
            self.give(Piece(text=self._matcher.rest(), ended="stop"))
            return
        scores = (
            ()
            if wanted.top_logprobs is None
            else (score_of(logits[0], token, wanted.top_logprobs, self.tokenizer),)
        )
        self.newest = token
        self._ids.append(token)
        text = self._matcher.add(token)
        if self._matcher.stopped:
            self.ended = "stop"
        elif len(self._ids) - len(wanted.ids) == wanted.max_new_tokens:
            self.ended = "length"
            text += self._matcher.rest()
        self.give(Piece(text=text, tokens=1, scores=scores, ended=self.ended))

    def give(self, piece: Piece | None) -> None:
        """Hand a piece to the reader; None where there will be no more."""
        try:
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the event loop is closed: the server has ended
            self.abandoned = True


def score_of(logits: Tensor, token: int, count: int, tokenizer: Tokenizer) -> Score:
    """The score of a token by the logits [V] it was drawn from, with the `count` likeliest."""
    log_probs = torch.log_softmax(logits.float(), -1)
    values, ids = log_probs.topk(min(count, len(log_probs)))
    return Score(
        data=token_bytes(tokenizer, token),
        logprob=float(log_probs[token]),
        likeliest=tuple(
            Score(data=token_bytes(tokenizer, i), logprob=value)
            for i, value in zip(ids.tolist(), values.tolist(), strict=True)
        ),
    )
