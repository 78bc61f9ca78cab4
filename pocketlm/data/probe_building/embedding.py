"""Texts as vectors of length 1: what the light scorer weighs, and what near texts are found by.

Shapes: N texts, D dimensions
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

EmbedderName = Literal["hashed", "wordllama"]
EMBEDDERS: tuple[EmbedderName, ...] = ("hashed", "wordllama")
Embedder = Callable[[Sequence[str]], np.ndarray]  # float32 [N, D], rows of length 1

DIMENSIONS = 4096  # of hashed words: 64 KB hold the vectors of four texts
WORD = re.compile(r"\w+|[^\w\s]")


def open_embedder(name: EmbedderName) -> Embedder:
    """hashed: counts of words, which needs nothing. wordllama: means of learned word vectors, from
    the package of that name, so that a synonym lies near its word.
    """
    return hashed_words if name == "hashed" else _wordllama()


def hashed_words(texts: Sequence[str]) -> np.ndarray:
    """[N, DIMENSIONS]: square roots of how often each word occurs, words in lower case hashed to
    a dimension and a sign (Weinberger et al. 2009). A text without words is a row of zeros.
    """
    vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word, count in Counter(WORD.findall(text.lower())).items():
            place, sign = _place(word)
            row[place] += sign * count**0.5
    return _unit(vectors)


@lru_cache(maxsize=2**18)
def _place(word: str) -> tuple[int, float]:
    code = zlib.crc32(word.encode("utf-8", "surrogatepass"))
    return code % DIMENSIONS, 1.0 if code >> 31 else -1.0


def _wordllama() -> Embedder:
    try:
        from wordllama import WordLlama  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            "embedder wordllama needs the package wordllama, which carries its 16 MB of weights: "
            "pip install wordllama, or set embedder=hashed"
        ) from None
    model = WordLlama.load()
    return lambda texts: _unit(np.asarray(model.embed(list(texts)), dtype=np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
