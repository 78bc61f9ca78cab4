"""A corpus folder, as the curate stage leaves it: which sources it has, what they serve, and their
held-out text.
"""

from collections.abc import Collection
from pathlib import Path

from pocketlm.data.batches import TextRows
from pocketlm.data.mixture import Shares, check_shares
from pocketlm.data.rows import Packing
from pocketlm.data.shards import Shard, list_sources, open_shard
from pocketlm.model.json_shape import NUMBER, TEXT, read_object
from pocketlm.model.tokenizer import Tokenizer


def open_shards(corpus: Path, split: str, sources: Collection[str] = ()) -> dict[str, Shard]:
    """Sources' shards of one split, by name; of all sources where none are named. ValueError: a
    source that the corpus lacks.
    """
    known = list_sources(corpus)
    if unknown := sorted(set(sources) - set(known)):
        raise ValueError(
            f"{corpus} has no source {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        )
    return {
        name: open_shard(corpus, name, split) for name in known if not sources or name in sources
    }


def source_domains(corpus: Path) -> dict[str, str]:
    """The domain (code, maths, knowledge) of each source."""
    sources = read_object(corpus / "curation.json").object("sources")
    return {name: sources.object(name).typed("domain", TEXT) for name in sources}


def held_out_texts(
    corpus: Path, tokenizer: Tokenizer, split: str, max_tokens: int, part: slice = slice(None)
) -> dict[str, list[str]]:
    """For each domain, texts of `split` worth about max_tokens, taken evenly from its sources.
    part: of each source's documents those to take from.
    """
    domains = source_domains(corpus)
    texts: dict[str, list[str]] = {}
    for name, shard in open_shards(corpus, split).items():
        domain = domains[name]
        share = max_tokens // list(domains.values()).count(domain)
        taken = 0
        for number in range(len(shard))[part]:
            if taken >= share:
                break
            ids = shard.document(number)[: share - taken + 1]
            taken += len(ids)
            texts.setdefault(domain, []).append(
                tokenizer.decode(ids[len(tokenizer.document_start) :].tolist())
            )
    return texts


def text_rows(
    corpus: Path, shares: Shares, seq_len: int, eos_id: int, packing: Packing = "document_heads"
) -> dict[str, TextRows]:
    """Training rows of every source that has a share."""
    return {
        name: TextRows(open_shard(corpus, name, "train"), seq_len, eos_id, packing)
        for name, share in shares.items()
        if share > 0
    }


def chosen_shares(
    given: Shares | None, corpus: Path, where: str, mix: Path | None, selection: Path | None = None
) -> Shares:
    """A config's own shares, else those a select stage or a mix stage found; checked against the
    corpus's sources. mix: what find_mix wrote, or a selection for its shares alone.
    """
    if given is not None:
        return check_shares(given, list_sources(corpus), f"{where}.shares")
    source = selection or mix
    if source is None:
        raise ValueError(
            f"{where}: no shares in the config, and neither a mix nor a selection as input"
        )
    file = source / "selection.json"
    if selection is None and not file.is_file():
        file = source / "mix.json"
    shares = read_object(file).object("shares")
    return check_shares(
        {name: shares.typed(name, NUMBER) for name in shares}, list_sources(corpus), str(file)
    )
