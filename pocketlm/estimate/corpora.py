"""How large public data sets are, as the papers' tables and their cards tell it, and files on disk.

The plan of a corpus that nobody has counted yet needs no more: tokens before any filter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES_PER_TOKEN = 4.2  # of English text and code, with vocabularies of 128k and more


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """tokens, and where the number comes from."""

    tokens: int
    source: str


R1_TABLE_3 = "R1, table 3"
R1_TABLE_5 = "rows of R1, table 5, at our estimate of tokens a row"
DOLMINO = "the card of dolmino-mix-1124"
CARD = "the data set's card"
BILLION = 10**9
COSMOPEDIA_ROWS = 31_064_744
# rows of R1's table 5 times tokens of a row: our estimate, 700 for Tulu 3 and 6,000 for long
# chains of thought
CHAT_TOKENS, REASONING_TOKENS = 700, 6_000
COSMOPEDIA_PARTS = {
    "auto_math_text": 1_949_895,
    "khanacademy": 24_123,
    "openstax": 126_332,
    "stanford": 1_020_024,
    "stories": 4_992_964,
    "web_samples_v1": 12_426_348,
    "web_samples_v2": 10_345_867,
    "wikihow": 179_191,
}
NEMOTRON = "nvidia/llama-nemotron-post-training-dataset"
# (data set, in lower case; config or split that names the part) -> tokens in billions, from where
SIZES: dict[tuple[str, str | None], tuple[float, str]] = {
    ("bigcode/starcoderdata", None): (263.8, R1_TABLE_3),
    ("open-web-math/open-web-math", None): (12.6, R1_TABLE_3),
    ("huggingfacefw/fineweb-edu", None): (1300, R1_TABLE_3),
    ("allenai/dolmino-mix-1124", "wiki"): (3.7, R1_TABLE_3),
    ("allenai/dolmino-mix-1124", "pes2o"): (50, R1_TABLE_3),
    ("allenai/dolmino-mix-1124", "dclm"): (752, DOLMINO),
    ("allenai/dolmino-mix-1124", "flan"): (17, DOLMINO),
    ("allenai/dolmino-mix-1124", "stackexchange"): (1.26, DOLMINO),
    ("allenai/dolmino-mix-1124", "math"): (10.7, DOLMINO),
    ("allenai/pes2o", None): (50, R1_TABLE_3),
    ("togethercomputer/redpajama-data-1t", "arxiv"): (28, R1_TABLE_3),
    ("togethercomputer/redpajama-data-1t", "stackexchange"): (19.6, R1_TABLE_3),
    ("eleutherai/proof-pile-2", "algebraic-stack"): (12.6, R1_TABLE_3),
    (NEMOTRON, "science"): (2, R1_TABLE_3),
    (NEMOTRON, "code"): (16, R1_TABLE_3),
    (NEMOTRON, "math"): (15, R1_TABLE_3),
    **{
        ("huggingfacetb/cosmopedia", part): (25 * rows / COSMOPEDIA_ROWS, R1_TABLE_3)
        for part, rows in COSMOPEDIA_PARTS.items()
    },
    ("facebook/natural_reasoning", None): (1.8, R1_TABLE_3),
    ("huggingfacetb/finemath", "finemath-3plus"): (34, R1_TABLE_3),
    ("nvidia/nemotron-cc-math-v1", "4plus"): (52, CARD),
    ("allenai/tulu-3-sft-olmo-2-mixture-0225", None): (866e3 * CHAT_TOKENS / BILLION, R1_TABLE_5),
    ("nvidia/openmathreasoning", None): (3.2e6 * REASONING_TOKENS / BILLION, R1_TABLE_5),
    ("nvidia/opensciencereasoning-2", None): (803e3 * REASONING_TOKENS / BILLION, R1_TABLE_5),
    ("nvidia/opencodereasoning-2", "python"): (1.4e6 * REASONING_TOKENS / BILLION, R1_TABLE_5),
    ("nvidia/opencodereasoning-2", "cpp"): (1.1e6 * REASONING_TOKENS / BILLION, R1_TABLE_5),
}


def source_size(source: Any) -> SourceSize | None:
    """Of a row of a recipe: a hub data set of SIZES, or a file or folder of this machine; None
    where nothing tells it.

    A cap in bytes counts where it is less.
    """
    size = _hub_size(source) or _local_size(source)
    cap = getattr(source, "max_bytes", None)
    if cap is None or (size and size.tokens * BYTES_PER_TOKEN <= cap):
        return size
    return SourceSize(tokens=int(cap / BYTES_PER_TOKEN), source="max_bytes")


def _hub_size(source: Any) -> SourceSize | None:
    dataset = str(getattr(source, "dataset", None) or "").lower()
    parts = [getattr(source, "config", None), getattr(source, "split", None), None]
    for part in parts:
        if (dataset, part) in SIZES:
            billions, where = SIZES[dataset, part]
            return SourceSize(tokens=int(billions * BILLION), source=where)
    return None


def _local_size(source: Any) -> SourceSize | None:
    path = getattr(source, "path", None)
    place = Path(path).expanduser() if path else None
    if place is None or not place.exists():
        return None
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    return SourceSize(tokens=int(total / BYTES_PER_TOKEN), source="the sizes of your files")
