"""The last step of curation: one task puts its documents that stay in order, and encodes them.

In a file of its own so that processes which run it import no more than that takes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pocketlm.corpus.documents import SPLITS
from pocketlm.corpus.kept import KeptDocuments
from pocketlm.corpus.progress import write_progress
from pocketlm.corpus.read_step import part_folder
from pocketlm.model.files import write_folder, write_json
from pocketlm.model.tokenizer import Tokenizer

Encode = Callable[[Iterable[str], Tokenizer], Iterator[np.ndarray]]


class WriteShard(Protocol):
    def __call__(
        self, folder: Path, split: str, documents: Iterable[np.ndarray], *, vocab_size: int
    ) -> Sized: ...


@dataclass(frozen=True, kw_only=True)
class EncodeStep:
    """A step of datatrove's. work: the folder of the work. moves: of each task, as KeptDocuments
    takes them. encode, write_shard: texts to ids, and these to a shard of as many documents as its
    length.
    """

    work: Path
    tokenizer: Path
    moves: tuple[dict[float, str], ...]
    encode: Encode
    write_shard: WriteShard

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        begun = time.monotonic()
        tokenizer = Tokenizer.load(self.tokenizer)
        documents = KeptDocuments(self.work, rank, self.moves[rank])
        count = size = 0
        with write_folder(part_folder(self.work / "encoded", rank)) as folder:
            for split in SPLITS:
                texts = documents.texts(split, folder / f"{split}.jsonl")
                ids = self.encode(texts, tokenizer)
                shard = self.write_shard(folder, split, ids, vocab_size=tokenizer.vocab_size)
                count += len(shard)
                size += (folder / f"{split}.jsonl").stat().st_size
            # what fills a bar: one task more
            write_progress(self.work / "encoding" / f"{rank:05d}", count, size, 1)
            seconds = round(time.monotonic() - begun, 3)
            write_json(folder / "encoded.json", {"seconds": seconds})
