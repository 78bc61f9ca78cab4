"""Texts as vectors of length 1: what the light scorer weighs, and what near texts are found by.

Shapes: N texts, D dimensions
"""

import importlib.util
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from safetensors.numpy import load_file

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
    """Means of the vectors of a text's tokens, read from the files in the package: its own code
    would fetch the tokenizer, which lies beside the weights, from the hub (version 0.4.0).
    """
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise ValueError(
            "embedder wordllama needs the package wordllama, which carries its 16 MB of weights: "
            "pip install --no-deps wordllama, or set embedder=hashed"
        )
    folder = Path(spec.origin).parent
    try:
        tensors = load_file(folder / "weights" / "l2_supercat_256.safetensors")
        file = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        table = tensors["embedding.weight"].astype(np.float32)  # [V, 256]
    except Exception as error:  # tokenizers raises a bare one
        raise ValueError(f"{folder}: not wordllama as of 0.4.0 ({error})") from None

    def embed(texts: Sequence[str]) -> np.ndarray:
        ids = [one.ids for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        rows = [table[row].mean(0) if row else np.zeros(table.shape[1]) for row in ids]
        return _unit(np.asarray(rows, dtype=np.float32))

    return embed


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
