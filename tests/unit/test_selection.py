"""What is kept, in which shares, and when rounds stop: from scores alone."""

from dataclasses import replace

import numpy as np
import pytest

from pocketlm.data.selection import Scored, choose, positive_share, stopped
from pocketlm.model.files import write_json
from pocketlm.stages.select import SelectConfig

RULES = SelectConfig(
    name="select",
    seq_len=24,
    candidate_tokens=900,
    probe_rows=6,
    batch_rows=4,
    budget_tokens=100,
    max_epochs=4.0,
    seed=3,
)
CAPABILITIES = {"code": ("scripts", "web"), "maths": ("sums", "web")}
SOURCES = {
    # influence on code, on maths
    "scripts": Scored(np.array([[4.0, -2.0], [1.0, -3.0], [-1.0, -1.0]]), np.array([10, 20, 30])),
    "sums": Scored(np.array([[-3.0, 1.0], [-1.0, 5.0]]), np.array([40, 10])),
    "web": Scored(np.array([[2.0, -1.0], [-3.0, 1.0]]), np.array([25, 25])),
}


def test_jointly_a_sample_is_kept_where_its_mean_influence_is_positive():
    selection = choose(RULES, SOURCES, CAPABILITIES)
    assert selection.influence["scripts"].tolist() == [1.0, -1.0, -1.0]
    kept = {name: part["tokens"] for name, part in selection.content["kept"].items()}
    assert kept == {"scripts": 10, "sums": 10, "web": 25}
    assert selection.content["density"] == {"scripts": 1.0, "sums": 2.0, "web": 0.5}


def test_per_capability_a_sample_is_kept_where_one_of_its_own_probe_sets_asks_for_it():
    selection = choose(replace(RULES, filter="per_capability"), SOURCES, CAPABILITIES)
    assert selection.influence["scripts"].tolist() == [4.0, 1.0, -1.0]
    assert selection.influence["sums"].tolist() == [1.0, 5.0]
    assert selection.influence["web"].tolist() == [2.0, 1.0]  # it serves both
    kept = {name: part["documents"] for name, part in selection.content["kept"].items()}
    assert kept == {"scripts": 2, "sums": 2, "web": 2}
    assert selection.content["density"]["scripts"] == pytest.approx((40 + 20) / 30)


def test_dropped_at_random_as_many_of_each_source_are_kept_but_others_by_the_seed():
    scores = np.random.default_rng(1).standard_normal((200, 2)) + 0.3
    sources = {**SOURCES, "scripts": Scored(scores, np.full(200, 10))}
    joint = choose(RULES, sources, CAPABILITIES)
    random = {
        seed: choose(replace(RULES, filter="random", seed=seed), sources, CAPABILITIES)
        for seed in (3, 4)
    }
    kept = joint.influence["scripts"] > 0
    for selection in random.values():
        assert selection.content["kept"]["scripts"] == joint.content["kept"]["scripts"]
        # of two random sets of this size so many agree by chance alone
        agree = (selection.influence["scripts"] > 0) == kept
        assert 0.3 < agree.mean() < 0.75
    assert (random[3].influence["scripts"] != random[4].influence["scripts"]).any()


def test_what_the_filter_drops_of_a_capability_is_counted():
    content = choose(RULES, SOURCES, CAPABILITIES).content
    maths = content["capabilities"]["maths"]
    assert maths["sources"] == ["sums", "web"]
    assert maths["documents"] == {"kept": 2, "of": 4}
    assert maths["tokens"] == {"kept": 35, "of": 100}
    # on the maths probes: sums 1 x 40 + 5 x 10, web 1 x 25; of it the filter keeps 5 x 10
    assert maths["positive_mass"] == {"before": 115.0, "after": 50.0}
    per_capability = choose(replace(RULES, filter="per_capability"), SOURCES, CAPABILITIES).content
    assert per_capability["capabilities"]["maths"]["positive_mass"]["after"] == 115.0


def test_shares_go_by_density_or_by_the_tokens_kept():
    wide = replace(RULES, max_epochs=100.0)
    by_density = choose(wide, SOURCES, CAPABILITIES).content["shares"]
    assert by_density == pytest.approx({"scripts": 1 / 3.5, "sums": 2 / 3.5, "web": 0.5 / 3.5})
    by_tokens = choose(replace(wide, shares_by="kept"), SOURCES, CAPABILITIES).content["shares"]
    assert by_tokens == pytest.approx({"scripts": 10 / 45, "sums": 10 / 45, "web": 25 / 45})
    capped = choose(RULES, SOURCES, CAPABILITIES).content["shares"]
    assert capped["sums"] == pytest.approx(4 * 10 / 100)


def test_the_positive_part_is_counted_by_mass_and_by_samples():
    content = choose(RULES, SOURCES, CAPABILITIES).content
    # jointly scripts 1, -1, -1; sums -1, 2; web 0.5, -1
    mass = (10 + 20 + 12.5) / (10 + 20 + 30 + 40 + 20 + 12.5 + 25)
    assert content["positive"] == pytest.approx({"mass": mass, "samples": 3 / 7})
    assert positive_share(np.zeros(3), np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"stop_below": 0.2}, None),
        ({"stop_below": 0.5}, "select: 27.0% of the influence is positive, below stop_below 50.0%"),
        (
            {"stop_below": 0.43, "stop_on": "samples"},
            "select: 42.9% of the samples are positive, below stop_below 43.0%",
        ),
        ({"stop_below": 0.42, "stop_on": "samples"}, None),
    ],
)
def test_a_round_stops_where_too_little_is_positive(change, words):
    content = choose(replace(RULES, **change), SOURCES, CAPABILITIES).content
    assert content["stopped"] == words and bool(content["shares"]) == (words is None)


def test_where_nothing_is_positive_it_is_an_error_or_the_end_of_the_rounds():
    nothing = {name: Scored(-np.abs(s.scores), s.tokens) for name, s in SOURCES.items()}
    with pytest.raises(ValueError, match="select: no sample of any source has positive influence"):
        choose(RULES, nothing, CAPABILITIES)
    content = choose(replace(RULES, stop_below=0.01), nothing, CAPABILITIES).content
    assert content["stopped"] == (
        "select: 0.0% of the influence is positive, below stop_below 1.0%"
    )


def test_a_source_of_no_capability_is_refused_by_the_filter_per_capability_alone():
    alone = {"code": ("scripts", "web"), "maths": ("web",)}
    choose(RULES, SOURCES, alone)
    message = "source sums serves none of the capabilities code, maths; name it in a probe set"
    with pytest.raises(ValueError, match=message):
        choose(replace(RULES, filter="per_capability"), SOURCES, alone)


def test_a_selection_of_an_earlier_version_never_stops(tmp_path):
    write_json(tmp_path / "selection.json", {"shares": {"web": 1.0}, "kept": {}})
    assert stopped(tmp_path) is None
    write_json(tmp_path / "selection.json", {"stopped": 3})
    with pytest.raises(ValueError, match="stopped"):
        stopped(tmp_path)
