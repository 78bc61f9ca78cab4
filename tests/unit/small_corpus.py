"""A small corpus folder as curate leaves it: three sources of three domains, each with a language
of its own, so that a model can tell them apart.
"""

from pathlib import Path

import torch

from pocketlm.data.shards import write_shard
from pocketlm.model.files import write_json
from pocketlm.model.tokenizer import train_tokenizer

DOMAINS = {"sums": "maths", "prose": "knowledge", "scripts": "code"}
VOCAB_SIZE = 300


def write_corpus(corpus: Path, documents: int = 24) -> Path:
    """`corpus`, with documents of 20 to 59 tokens in each split of each source; "prose" is three
    times as large.
    """
    text = "the quick brown fox jumps over the lazy dog while rain falls on the plain "
    for number, name in enumerate(DOMAINS):
        folder = corpus / "shards" / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(number)
        for split in ("train", "validation", "probe"):
            count = documents * (3 if (split, name) == ("train", "prose") else 1)
            lengths = torch.randint(20, 60, (count,), generator=generator).tolist()
            rows = [
                torch.randint(10 + 40 * number, 70 + 40 * number, (n,), generator=generator)
                for n in lengths
            ]
            write_shard(folder, split, [[0, *row.tolist()] for row in rows], vocab_size=VOCAB_SIZE)
    sources = {name: {"domain": domain} for name, domain in DOMAINS.items()}
    write_json(corpus / "curation.json", {"sources": sources})
    (corpus / "tokenizer").mkdir()
    train_tokenizer([text * 40], VOCAB_SIZE).save(corpus / "tokenizer")
    return corpus
