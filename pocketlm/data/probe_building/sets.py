"""Probe sets from scored documents: what is alike goes, the best of each source stay, and all of it
is written with what each step did.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.data.probe_building.embedding import EmbedderName, open_embedder
from pocketlm.data.probe_building.scores import Documents
from pocketlm.data.probe_building.semantic import Deduplication, deduplicate
from pocketlm.data.probe_sets import BUILT, vocabulary_digest
from pocketlm.data.shards import write_shard
from pocketlm.model.files import write_folder, write_json
from pocketlm.model.tokenizer import Tokenizer

EXAMPLES = 3  # documents kept, and dropped, that probes.json shows of each source and step
EXAMPLE_CHARS = 200
AT_ONCE = 256  # texts that are embedded together

Ranked = dict[int, float]  # documents of a source by number: the last score of each
Members = dict[str, dict[str, Ranked]]  # capability -> source -> its documents
Step = dict[str, Any]  # of probes.json


def without_duplicates(
    documents: Mapping[str, Documents],
    members: Members,
    sources: Mapping[str, Ranked],
    *,
    embedder: EmbedderName,
    max_cosine: float,
    documents_per_cluster: int,
    seed: int,
) -> tuple[Members, Step]:
    """(the documents that stay of those alike, of all sources and capabilities together; the step).

    sources: ranks all documents; the highest of those alike stays.
    """
    facts = {"step": "deduplication", "embedder": embedder, "max_cosine": max_cosine}
    pool = sorted({(s, n) for by in members.values() for s, docs in by.items() for n in docs})
    if not pool:
        return members, {**facts, "cluster_sizes": [], "sources": {}}
    embed = open_embedder(embedder)
    texts = [documents[source].texts([number])[0] for source, number in pool]
    vectors = np.concatenate([embed(texts[i : i + AT_ONCE]) for i in range(0, len(texts), AT_ONCE)])
    outcome = deduplicate(
        vectors,
        np.asarray([sources[source][number] for source, number in pool]),
        max_cosine=max_cosine,
        documents_per_cluster=documents_per_cluster,
        seed=seed,
    )
    record = {}
    for source in sorted({source for source, _ in pool}):
        places = [i for i, (name, _) in enumerate(pool) if name == source]
        record[source] = _deduplicated(places, texts, outcome)
    stay = {pair for pair, kept in zip(pool, outcome.kept, strict=True) if kept}
    remaining = {
        name: {s: {n: r for n, r in docs.items() if (s, n) in stay} for s, docs in by.items()}
        for name, by in members.items()
    }
    return remaining, {**facts, "cluster_sizes": outcome.cluster_sizes, "sources": record}


def _deduplicated(places: list[int], texts: list[str], outcome: Deduplication) -> Step:
    """What became of one source's texts."""
    stays = [i for i in places if outcome.kept[i]]
    dropped = [
        {
            "cosine": round(float(outcome.cosine[i]), 4),
            "text": shortened(texts[i]),
            "like": shortened(texts[outcome.like[i]]),
        }
        for i in places
        if not outcome.kept[i]
    ]
    kept = [{"text": shortened(texts[i])} for i in stays[:EXAMPLES]]
    return {
        "of": len(places),
        "kept": len(stays),
        "examples": {"kept": kept, "dropped": dropped[:EXAMPLES]},
    }


def of_size(
    documents: Mapping[str, Documents], members: Members, most: int
) -> tuple[Members, list[Step]]:
    """(the `most` highest ranked of each source and capability, a step for each capability)."""
    chosen: Members = {}
    steps = []
    for capability, by_source in members.items():
        chosen[capability], record = {}, {}
        for source, ranked in by_source.items():
            numbers = np.asarray(sorted(ranked), dtype=np.int64)
            scores = np.asarray([ranked[number] for number in numbers.tolist()])
            stays = top(scores, most)
            chosen[capability][source] = {n: ranked[n] for n in numbers[stays].tolist()}
            record[source] = {
                "of": len(numbers),
                "kept": int(stays.sum()),
                "examples": examples(documents[source], numbers, scores, stays),
            }
        steps.append({"step": "size", "capability": capability, "most": most, "sources": record})
    return chosen, steps


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Whether each is among the `count` highest [N] bool; of equal scores the first."""
    stays = np.zeros(len(scores), dtype=bool)
    stays[np.lexsort((np.arange(len(scores)), -scores))[:count]] = True
    return stays


def examples(
    documents: Documents, numbers: np.ndarray, scores: np.ndarray, stays: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """The first documents kept and dropped, not picked by hand."""
    chosen = {"kept": np.flatnonzero(stays), "dropped": np.flatnonzero(~stays)}
    return {
        name: [
            {"score": round(float(scores[i]), 6), "text": shortened(text)}
            for i, text in zip(
                places[:EXAMPLES], documents.texts(numbers[places[:EXAMPLES]]), strict=True
            )
        ]
        for name, places in chosen.items()
    }


def shortened(text: str) -> str:
    """The beginning of a text, to be read in probes.json."""
    return text if len(text) <= EXAMPLE_CHARS else f"{text[:EXAMPLE_CHARS]} …"


def write_sets(
    where: str,
    out: Path,
    documents: Mapping[str, Documents],
    members: Members,
    steps: list[Step],
    tokenizer: Tokenizer,
) -> None:
    """out/probes/<capability>/<source>, shards of the documents that are left, and probes.json.

    ValueError, beginning with `where`: a capability of which nothing is left.
    """
    for capability, by_source in members.items():
        if not any(by_source.values()):
            raise ValueError(_nothing_left(where, capability, list(by_source), steps))
    written: dict[str, dict[str, Any]] = {}
    with write_folder(out / "probes") as folder:
        for capability, by_source in members.items():
            written[capability] = {}
            for source, ranked in by_source.items():
                if not ranked:
                    continue
                place = folder / capability / source
                place.mkdir(parents=True)
                rows = (documents[source].shard.document(number) for number in sorted(ranked))
                shard = write_shard(place, "probe", rows, vocab_size=tokenizer.vocab_size)
                written[capability][source] = {"documents": len(shard), "tokens": len(shard.tokens)}
    content = {"vocabulary": vocabulary_digest(tokenizer), "capabilities": written, "steps": steps}
    write_json(out / BUILT, content)


def _nothing_left(where: str, capability: str, serving: list[str], steps: list[Step]) -> str:
    counts = [
        f"{source} {figures['of']} -> {figures['kept']} by {step['step']}"
        for source in serving
        for step in steps
        if step.get("capability", capability) == capability
        and (figures := step.get("sources", {}).get(source))
    ]
    return (
        f"{where}: nothing is left for capability {capability!r} "
        f"({'; '.join(counts)}); lower min_quality, raise top_share, or raise probe_share in curate"
    )
