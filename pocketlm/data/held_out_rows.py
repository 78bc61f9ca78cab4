"""Held-out rows in two parts that share no token: one to choose by, the other to report on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pocketlm.data.batches import Row, TextRows
from pocketlm.data.corpus_folder import open_shards, source_domains

Rows = dict[str, list[Row]]  # of each domain
Place = tuple[TextRows, int]


def two_parts(
    corpus: Path, split: str, seq_len: int, max_rows: int, eos_id: int
) -> tuple[Rows, Rows]:
    """(rows of each domain, as many others that share no token with them): up to max_rows in each
    part, and at most half of what is there; the sources of a domain take turns.

    ValueError: a domain without two rows that share no token.
    """
    domains = source_domains(corpus)
    sources = {
        name: TextRows(shard, seq_len, eos_id) for name, shard in open_shards(corpus, split).items()
    }
    parts: tuple[Rows, Rows] = ({}, {})
    for domain in sorted(set(domains.values())):
        serving = [rows for name, rows in sources.items() if domains[name] == domain]
        count = min(max_rows, sum(map(len, serving)) // 2)
        first_part = list(islice(_in_turns(serving, [0] * len(serving)), count))
        # a document that a row's end cuts comes again, whole, in the next row: that one is left out
        beyond = [_first_beyond(rows, first_part) for rows in serving]
        second_part = list(islice(_in_turns(serving, beyond), count))
        if not second_part:
            raise ValueError(
                f"domain {domain!r} has too little {split} text in {corpus} to choose on one part "
                f"and report on another; raise {split}_share in curate"
            )
        for part, places in zip(parts, (first_part, second_part), strict=True):
            part[domain] = [rows[number] for rows, number in places]
    return parts


def _in_turns(sources: list[TextRows], firsts: list[int]) -> Iterator[Place]:
    """Rows from `firsts` on, the sources taking turns."""
    for turn in range(max(map(len, sources), default=0)):
        for rows, first in zip(sources, firsts, strict=True):
            if first + turn < len(rows):
                yield rows, first + turn


def _first_beyond(rows: TextRows, chosen: list[Place]) -> int:
    """The first row of a source that shares no token with its chosen rows, which are its first."""
    first = sum(source is rows for source, _ in chosen)
    if not first:
        return 0
    end = rows.index.start(first - 1) + rows.seq_len + 1
    while first < len(rows) and rows.index.start(first) < end:
        first += 1
    return first
