"""Shares by influence density against equations 4 to 6 written out, and the whole method on a
corpus whose truth is known.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data.datainf import score_directions
from pocketlm.data.influence import influence
from pocketlm.data.mixing.influence import InfluenceMix, influence_mix, measure_influence
from pocketlm.data.mixing.problem import Milestone, Mix, MixProblem
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.files import read_json
from pocketlm.model.transformer import Transformer
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.proxies import Proxies
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig

CAPABILITIES = {"code": ("scripts", "web"), "maths": ("sums", "web")}
TOKENS = {"scripts": 1000, "sums": 1000, "web": 5000}
LABELS = {"scripts": [10, 30], "sums": [20], "web": [5, 15, 40]}


def drawn_scores(seed: int, shift: float = 0.0) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=len(n)) + shift).tolist() for name, n in LABELS.items()}


def milestones(capability: str, shift: float = 2.0) -> list[dict[str, Any]]:
    first = 10 * list(CAPABILITIES).index(capability)
    return [
        {
            "tokens": LABELS,
            "datainf": drawn_scores(first + t, shift),
            "adam": drawn_scores(100 + first + t, shift),
        }
        for t in range(3)
    ]


def mixed(config: InfluenceMix, given: Callable[..., list] = milestones, **changes) -> Mix:
    """The mix where simulated runs measure what is given; the shares they were trained on are
    checked.
    """
    order = iter(changes.get("capabilities", CAPABILITIES))

    def simulate(shares, count, measure, *, fixed_rows=None):
        capability = next(order)
        serving = [name for name in TOKENS if name in CAPABILITIES[capability]]
        assert shares == {name: 0.5 * (name in serving) for name in TOKENS}
        assert (count, fixed_rows) == (config.num_gradient_probes, config.representative_rows)
        assert measure.keywords == {"capability": capability, "damping": config.damping}
        return given(capability)

    problem = {
        "tokens": TOKENS,
        "capabilities": CAPABILITIES,
        "budget_tokens": 1000,
        "max_epochs": 4.0,
        "where": "mix.methods.found",
        "simulate": simulate,
        "losses": lambda mixes: {},
    }
    return influence_mix(config, MixProblem(**{**problem, **changes}))


CONFIG = InfluenceMix(num_gradient_probes=3)


def spearmans(first: Any, second: Any) -> float:
    return float(np.corrcoef([rankdata(first), rankdata(second)])[0, 1])


def by_equations(score: str, given: Callable[..., list] = milestones) -> dict[str, float]:
    """rho of each source: sums over capabilities, milestones and rows, one by one."""
    densities = {}
    for source, labels in LABELS.items():
        total = 0.0
        for row, size in enumerate(labels):
            joint = 0.0
            for capability in CAPABILITIES:
                for t, measured in enumerate(given(capability), start=1):
                    joint += t / (1 + 2 + 3) / 2 * measured[score][source][row]
            total += joint * size
        densities[source] = total / sum(labels)
    return densities


@pytest.mark.parametrize("score", ["datainf", "adam"])
def test_shares_are_the_densities_of_the_papers_equations(score):
    mix = mixed(replace(CONFIG, score=score))
    densities = by_equations(score)
    total = sum(densities.values())
    assert mix.shares == pytest.approx({name: rho / total for name, rho in densities.items()})
    told = mix.details["influence"]
    assert told["density"] == pytest.approx(densities) and told["clipped"] == []
    parts = told["density_by_capability"]
    for source, rho in densities.items():
        assert sum(by_source[source] for by_source in parts.values()) == pytest.approx(rho)
    assert told["rows"] == {"scripts": 2, "sums": 1, "web": 3}


def test_both_scores_stand_side_by_side_with_the_rank_correlation_of_their_densities():
    told = mixed(CONFIG).details["influence"]
    both = {score: by_equations(score) for score in ("datainf", "adam")}
    assert told["density_by_score"]["adam"] == pytest.approx(both["adam"])
    expected = spearmans(*([*densities.values()] for densities in both.values()))
    assert told["rank_correlation"]["sources"] == pytest.approx(expected)
    assert -1 <= told["rank_correlation"]["rows"] <= 1


def test_the_positive_mass_is_by_tokens_and_over_all_influence():
    def given(capability: str) -> list[dict[str, Any]]:
        rows = {"scripts": [3.0, -1.0], "sums": [1.0], "web": [0.0, 0.0, 0.0]}
        return [{"tokens": LABELS, "datainf": rows, "adam": rows}] * 3

    told = mixed(CONFIG, given).details["influence"]
    # 3 x 10 against 1 x 30
    expected = {"scripts": 0.5, "sums": 1.0, "web": 0.0}
    assert told["positive_mass"] == pytest.approx(expected)
    assert told["positive_mass_by_capability"]["code"] == pytest.approx(expected)


def test_a_domain_model_that_learned_nothing_is_named():
    def given(capability: str) -> list[dict[str, Any]]:
        learned = {"code": 0.3, "maths": 0.6}[capability]
        return [{**one, "learned": learned} for one in milestones(capability)]

    mix = mixed(CONFIG, given)
    assert mix.details["influence"]["learned"] == {"code": 0.3, "maths": 0.6}
    (line,) = mix.warnings
    assert "the domain model of code did not learn: at its end its probe loss is 0.3 nats" in line
    assert len(mixed(replace(CONFIG, min_fall=1.0), given).warnings) == 2
    assert mixed(CONFIG).warnings == ()  # measured by an earlier version


def harmful(capability: str) -> list[dict[str, Any]]:
    """Web text raises the loss of every probe."""
    rows = {"scripts": [1.0, 1.0], "sums": [3.0], "web": [-1.0, -2.0, -3.0]}
    return [{"tokens": LABELS, "datainf": rows, "adam": rows}] * 3


def test_a_source_of_negative_density_gets_nothing_and_is_named():
    mix = mixed(CONFIG, harmful)
    assert mix.shares == pytest.approx({"scripts": 0.25, "sums": 0.75, "web": 0.0})
    assert mix.details["influence"]["clipped"] == ["web"]
    assert mix.details["influence"]["density"]["web"] < 0


def test_negative_densities_are_refused_where_the_config_says_so_and_where_none_is_left():
    with pytest.raises(ValueError, match=r"mix\.methods\.found: web would raise the probes' loss"):
        mixed(replace(CONFIG, negative_density="refuse"), harmful)

    def all_harmful(capability: str) -> list[dict[str, Any]]:
        return milestones(capability, shift=-9.0)

    with pytest.raises(ValueError, match="no source has positive influence density; train the"):
        mixed(CONFIG, all_harmful)


def test_no_source_repeats_more_often_than_the_problem_allows():
    capped = mixed(CONFIG, harmful, budget_tokens=8000)
    assert capped.shares["sums"] == pytest.approx(4 * 1000 / 8000)
    assert sum(capped.shares.values()) == pytest.approx(1)


def test_a_capability_without_a_source_of_the_corpus_is_refused():
    with pytest.raises(ValueError, match=r"capability 'law' \(statutes\) is in the corpus"):
        mixed(CONFIG, capabilities={"law": ("statutes",)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "newton"}, "score 'newton' is unknown; known: datainf, adam"),
        ({"negative_density": "keep"}, "negative_density 'keep' is unknown; known: clip, refuse"),
        ({"num_gradient_probes": 0}, "num_gradient_probes 0 and representative_rows 256 must be"),
        ({"representative_rows": 0}, "representative_rows 0 must be at least 1"),
        ({"damping": 0.0}, "damping 0.0 must be positive; the papers' is 0.1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


# ---- one milestone ----


def drawn_batch(rows: int, seed: int) -> Batch:
    ids = torch.randint(300, (rows, 13), generator=torch.Generator().manual_seed(seed))
    labels = ids[:, 1:].clone()
    labels[0, 7:] = IGNORE_INDEX
    return Batch(input_ids=ids[:, :-1], labels=labels)


def test_a_milestone_scores_each_row_on_the_probes_of_one_capability():
    model = Transformer(small(num_hidden_layers=1, initializer_range=0.1))
    sources = {"sums": [drawn_batch(2, 1), drawn_batch(1, 2)], "web": [drawn_batch(3, 3)]}
    probes = {"code": [drawn_batch(2, 5)], "maths": [drawn_batch(2, 6)]}
    measured = measure_influence(
        Milestone(
            model=model, lr=1.0, loss_fn=next_token_loss, source_rows=sources, probe_rows=probes
        ),
        "maths",
        0.2,
    )
    assert measured["tokens"] == {"sums": [7, 12, 7], "web": [7, 12, 12]}
    (maths,) = probes["maths"]
    loss = F.cross_entropy(
        model(maths.input_ids).flatten(0, 1), maths.labels.flatten(), ignore_index=IGNORE_INDEX
    )
    alike = math.log(model.config.vocab_size)
    assert measured["learned"] == pytest.approx(alike - loss.item(), abs=1e-5)
    samples = [batch for batches in sources.values() for batch in batches]
    for score in ("datainf", "adam"):
        direction = score_directions(score, model, probes, samples, damping=0.2)[1:]
        for source, batches in sources.items():
            expected = torch.cat([influence(model, batch, direction)[:, 0] for batch in batches])
            assert measured[score][source] == pytest.approx(expected.tolist(), rel=1e-4)


# ---- in the stage ----

STAGE = MixConfig(
    name="mix",
    methods={
        "by density": InfluenceMix(num_gradient_probes=2, representative_rows=6),
        "flat": UniformMix(),
    },
    selected="by density",
    proxy=small(
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=1,
        max_position_embeddings=32,
        initializer_range=0.1,
    ),
    optim=OptimConfig(
        lr=1e-2, num_steps=6, warmup_steps=1, final_lr_share=0.1, compute_dtype="float32"
    ),
    seq_len=24,
    rows_per_step=4,
    micro_batch_size=2,
    budget_tokens=2000,
    max_epochs=4.0,
    seed=3,
    validation_tokens=200,
    save=SaveConfig(every_steps=2),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("mix") / "corpus")


@pytest.fixture(scope="module")
def compared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = find_mix(STAGE, tmp_path_factory.mktemp("mixed"), corpus=corpus)
    proxies = {folder.name for folder in (out / "proxies").iterdir()}
    simulated = {f"by density-simulated-{number}" for number in (1, 2, 3)}
    assert proxies == {"by density", "flat", *simulated}
    return read_json(out / "mix.json")


def test_a_source_helps_the_probes_of_its_own_language_most(compared):
    told = compared["mixes"]["by density"]["influence"]
    assert set(told["rows"].values()) == {6}
    for source, domain in DOMAINS.items():
        on_its_probes = told["density_by_capability"][domain]
        assert max(on_its_probes, key=lambda name: on_its_probes[name]) == source
        assert on_its_probes[source] > 0
    assert sum(compared["shares"].values()) == pytest.approx(1)


def test_fixed_rows_are_the_same_at_every_milestone_of_every_run(corpus, tmp_path):
    def ids(milestone: Milestone) -> list:
        rows = (*milestone.source_rows.values(), *milestone.probe_rows.values())
        return [batch.input_ids.tolist() for batches in rows for batch in batches]

    proxies, flat = Proxies(STAGE, tmp_path, corpus), dict.fromkeys(DOMAINS, 1 / 3)
    names = iter(["one", "two"])
    first, second = (proxies.simulate(names, flat, 2, ids, fixed_rows=5) for _ in range(2))
    assert first[0] == first[1] == second[0] == second[1]
    rows = [row for batch in first[0] for row in batch]
    assert len(rows) == 6 * 5 and len({tuple(row) for row in rows}) == len(rows)
    whole = proxies.simulate(iter(["three"]), flat, 1, ids, fixed_rows=10**6)[0]
    assert sum(map(len, whole)) == sum(len(r) for r in proxies.rows.values()) + sum(
        len(proxies._rows(shard))
        for shards in proxies.probes.shards.values()
        for shard in shards.values()
    )


@pytest.mark.parametrize("opened", [2, 5])
def test_domain_models_that_were_scored_before_a_stop_are_not_scored_again(
    opened, compared, corpus, tmp_path, monkeypatch
):
    calls = 0
    open_proxy = Proxies.open

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == opened:
            raise KeyboardInterrupt
        return open_proxy(*arguments)

    monkeypatch.setattr(Proxies, "open", failing)
    with pytest.raises(KeyboardInterrupt):
        find_mix(STAGE, tmp_path, corpus=corpus)
    find_mix(STAGE, tmp_path, corpus=corpus)
    assert read_json(tmp_path / "mix.json") == compared
    assert calls == 1 + 3 * 2 + 2 * 3  # milestones, and two mixes measured on three domains
