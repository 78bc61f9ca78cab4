"""Exact and near duplicates, found while documents stream by.

Near duplicates share one of `num_buckets` bands of MinHash values over word n-grams (datatrove's
shingles and signatures): with 14 bands of 8 a pair of Jaccard similarity 0.8 is found with
probability 0.92, one of 0.5 with 0.05. The first of a group is kept, in reading order, across all
sources of a corpus.
"""

import hashlib
import tempfile
from dataclasses import dataclass

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig

from pocketlm.corpus.word_split import WORDS


@dataclass(frozen=True, kw_only=True)
class MinHash:
    """More buckets find looser duplicates, more hashes per bucket only closer ones. Defaults:
    FineWeb's.
    """

    num_buckets: int = 14
    hashes_per_bucket: int = 8
    shingle_words: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        for field in ("num_buckets", "hashes_per_bucket", "shingle_words"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"minhash.{field} is {getattr(self, field)}; it must be at least 1"
                )


def content_hash(text: str, salt: int = 0) -> str:
    """32 hexadecimal digits that depend on the text (surrounding blanks aside) and the salt
    only.
    """
    return hashlib.blake2b(
        text.strip().encode(), digest_size=16, salt=salt.to_bytes(16, "big", signed=True)
    ).hexdigest()


class DuplicateIndex:
    """Remembers the texts it is told to `add`; `is_exact` and `is_near` ask whether a text is one
    of them.
    """

    def __init__(self, minhash: MinHash) -> None:
        config = MinhashConfig(
            n_grams=minhash.shingle_words,
            num_buckets=minhash.num_buckets,
            hashes_per_bucket=minhash.hashes_per_bucket,
            seed=minhash.seed,
            # datatrove 0.10 hands str to xxhash, which xxhash 4 refuses
            hash_config=HashConfig(hash_fc="sha1"),
        )
        # the folder is only written by datatrove's own pipeline, which is not run here
        folder = tempfile.gettempdir()
        self._signatures = MinhashDedupSignature(folder, config, language=WORDS)  # type: ignore[arg-type]
        self._hashes: set[str] = set()
        self._buckets: list[set[bytes]] = [set() for _ in range(minhash.num_buckets)]

    def is_exact(self, text: str) -> bool:
        return content_hash(text) in self._hashes

    def is_near(self, signature: list[bytes]) -> bool:
        return any(band in bucket for band, bucket in zip(signature, self._buckets, strict=False))

    def add(self, text: str, signature: list[bytes]) -> None:
        """Remember a kept text; an empty signature leaves it out of the near-duplicate search."""
        self._hashes.add(content_hash(text))
        for band, bucket in zip(signature, self._buckets, strict=False):
            bucket.add(band)

    def signature(self, text: str) -> list[bytes]:
        """One band of hashes per bucket; empty when the text has fewer words than one shingle."""
        # accents cost a pass over every character, and ASCII text has none
        self._signatures.config.norm_config = TextNormConfig(
            norm_unicode_diacritics=not text.isascii()
        )
        shingles = self._signatures.get_shingles(text)
        if not shingles.size:
            return []
        return [
            np.asarray(band, dtype=np.uint64).tobytes()
            for band in self._signatures.get_signature(shingles)
        ]
