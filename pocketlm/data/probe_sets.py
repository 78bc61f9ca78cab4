"""Probe sets: held-out text of each capability, which influence, utility and leave-one-out runs
look at.

Without a stage that builds them they are the corpus's probe split, each source in the capability of
its domain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketlm.data.corpus_folder import open_shards, source_domains
from pocketlm.data.shards import Shard


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


def open_probe_sets(corpus: Path) -> ProbeSets:
    """The probe sets of a corpus, capabilities in alphabetical order."""
    domains, shards = source_domains(corpus), open_shards(corpus, "probe")
    return ProbeSets(
        {
            domain: {name: shard for name, shard in shards.items() if domains[name] == domain}
            for domain in sorted(set(domains.values()))
        }
    )
