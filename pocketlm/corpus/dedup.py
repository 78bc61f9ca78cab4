"""How alike two texts must be to count as one, and the hash of a text."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MinHash:
    """Near duplicates share one of num_buckets bands of hashes_per_bucket MinHash values over
    n-grams of shingle_words words.

    More buckets find looser duplicates, more hashes per bucket only closer ones. Defaults:
    FineWeb's, which find a pair of Jaccard similarity 0.8 with probability 0.92, one of 0.5 with
    0.05.
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
