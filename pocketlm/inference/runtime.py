"""What a model that answers can do, whichever runtime computes it.

Shapes: T tokens, V vocabulary
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.continuations import Scorer
from pocketlm.inference.sampling import GREEDY, Sampling
from pocketlm.model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one text of some length; None where a file does not say.

    kv_bytes: what is allocated for its keys and values. step_bytes: what one more token must read:
    every weight once, and the keys and values it sees.
    """

    kv_bytes: int | None
    step_bytes: int | None


class Runtime(Protocol):
    """A checkpoint, a .gguf, a .pte or a folder in transformers, opened for its answers; a caller
    cannot tell which.

    Ids come in and go out as Python lists, figures as float32 arrays on the processor, wherever the
    network itself is computed. ValueError: no ids, ids outside the vocabulary, or more than
    `max_length` of them.

    Threads: any thread may call any method but `close`, and several may call at once; each answer
    is what it would be alone. Whether calls run side by side or wait for each other is the
    runtime's choice. One stream belongs to one thread at a time. `close` comes last: no call may be
    running, and none may follow.
    """

    tokenizer: Tokenizer
    max_length: int  # tokens of the longest text, prompt and answer together

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids` [T]."""
        ...

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """Natural log-probability [T - 1], float32, of each of `ids` [T] but the first, given those
        before it.

        Where the runtime allows it, no more logits are held than those of a chunk of tokens.
        """
        ...

    def scorer(self) -> Scorer:
        """What gives the log-likelihoods of continuations, and keeps what it read of their shared
        beginning: one thread's.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        stop_strings: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ) -> list[list[int]]:
        """New ids for each prompt, up to max_new_tokens or max_length; the stop id is left out.

        stop_strings: an answer ends with the id that completes one of them; `before_stop` of its
        text is before it. Row n draws with seed + n, whoever is beside it.
        """
        ...

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling = GREEDY,
    ) -> Iterator[int]:
        """The ids that `generate` gives for one prompt, one at a time, as they are made.

        `text_pieces` turns them into text and ends at stop strings.
        """
        ...

    def memory(self, length: int) -> Memory:
        """Bytes that a text of `length` tokens takes and that one more token reads."""
        ...

    def close(self) -> None:
        """Free weights and caches; every later call is a ValueError or undefined."""
        ...


def check_ids(
    ids: Sequence[int], *, vocab_size: int, max_length: int, limit: str, advice: str
) -> None:
    """Raise a ValueError for no ids, ids outside the vocabulary, or more than max_length of them.

    limit: what max_length is, as in "exceed the context of 1024". advice: what else to do than to
    shorten the text.
    """
    if not ids:
        raise ValueError("an empty prompt: at least one token is needed to start from")
    if len(ids) > max_length:
        raise ValueError(f"{len(ids)} tokens exceed {limit}; shorten the text or {advice}")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ValueError(
            f"ids {min(ids)} to {max(ids)} are not all in the vocabulary of {vocab_size}"
        )


def log_probs_from(chunks: Iterable[Tensor], ids: Sequence[int]) -> np.ndarray:
    """`Runtime.log_probs` from the logits [n, V] of one chunk of `ids` after the other.

    A chunk is dropped before the next one is asked for. The sum over the vocabulary is float32.
    """
    pieces, start = [np.zeros(0, np.float32)], 1
    for chunk in chunks:
        pieces.append(_scores(chunk, ids[start : start + len(chunk)]))
        start += len(chunk)
        del chunk
    return np.concatenate(pieces)


def _scores(logits: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Log-probability of each of the targets by the row at its place; nothing comes after the last
    id, so that of the last chunk a row may be left over.
    """
    logits = logits[: len(targets)].float()
    index = torch.tensor(targets, dtype=torch.long, device=logits.device)[:, None]
    return (logits.gather(-1, index)[:, 0] - logits.logsumexp(-1)).cpu().numpy()
