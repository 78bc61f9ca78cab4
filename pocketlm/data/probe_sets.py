"""Probe sets: held-out text of each capability, which influence, utility and leave-one-out runs
look at.

They are what build_probes wrote, or without it the corpus's probe split, each source in the
capability of its domain.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketlm.data.corpus_folder import open_shards, source_domains
from pocketlm.data.shards import Shard, read_shard
from pocketlm.model.json_shape import TEXT, read_object
from pocketlm.model.tokenizer import Tokenizer

BUILT = "probes.json"  # beside the folder probes/<capability>/<source>


@dataclass(frozen=True)
class ProbeSets:
    """shards[capability][source]: the source's probe text for that capability. A source may serve
    several capabilities.
    """

    shards: Mapping[str, Mapping[str, Shard]]

    @property
    def capabilities(self) -> dict[str, tuple[str, ...]]:
        """The sources that serve each capability."""
        return {name: tuple(shards) for name, shards in self.shards.items()}


def open_probe_sets(
    corpus: Path, probes: Path | None = None, sources: Collection[str] = ()
) -> ProbeSets:
    """The probe sets of a corpus, capabilities in alphabetical order.

    probes: the output of build_probes, made of this corpus or of another with the same tokenizer.
    sources: whose held-out text serves where nothing was built; empty: of all.
    """
    if probes is not None:
        return _built_sets(corpus, probes)
    shards = open_shards(corpus, "probe", sources)
    domains = {name: source_domains(corpus)[name] for name in shards}
    return ProbeSets(
        {
            domain: {name: shard for name, shard in shards.items() if domains[name] == domain}
            for domain in sorted(set(domains.values()))
        }
    )


def _built_sets(corpus: Path, probes: Path) -> ProbeSets:
    if not (probes / BUILT).is_file():
        raise FileNotFoundError(
            f"{probes} holds no {BUILT}; is it the output of a build_probes stage?"
        )
    written = read_object(probes / BUILT)
    if written.typed("vocabulary", TEXT) != vocabulary_digest(Tokenizer.load(corpus / "tokenizer")):
        raise ValueError(
            f"{probes} holds token ids of another tokenizer than that of {corpus}; build the "
            "probes from a corpus that was curated with this one"
        )
    sets = written.object("capabilities")
    return ProbeSets(
        {
            capability: {
                source: read_shard(probes / "probes" / capability / source, "probe")
                for source in sorted(sets.object(capability))
            }
            for capability in sorted(sets)
        }
    )


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of the words and their ids."""
    words = sorted(tokenizer.backend.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
