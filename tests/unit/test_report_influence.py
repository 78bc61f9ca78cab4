"""The report on influence: densities behind a mix, and what a selection dropped."""

from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import tostring

import numpy as np

from pocketlm.data.selection import Scored, choose
from pocketlm.report.corpus import selection_section
from pocketlm.report.mixing import mix_section
from pocketlm.stages.select import SelectConfig


def text_of(section: Any) -> str:
    return "".join(section.itertext()) + tostring(section, encoding="unicode")


def test_a_mix_by_influence_shows_its_densities_and_who_got_nothing():
    influence = {
        "score": "datainf",
        "density": {"sums": 3.25, "web": -1.5},
        "density_by_capability": {"maths": {"sums": 3.25, "web": -1.5}},
        "capabilities": {"maths": ["sums"]},
        "positive_mass": {"sums": 0.875, "web": 0.25},
        "clipped": ["web"],
        "density_by_score": {"datainf": {}, "adam": {}},
        "rank_correlation": {"sources": 1.0, "rows": None},
    }
    mix = {
        "method": "by density",
        "shares": {"sums": 1.0, "web": 0.0},
        "bits_per_byte": {"maths": 1.0, "mean": 1.0},
        "influence": influence,
        "warnings": ["web lowers no probe's loss"],
    }
    content = {"selected": "r1", "shares": mix["shares"], "mixes": {"r1": mix}}
    text = text_of(mix_section([SimpleNamespace(name="mix", files={"mix.json": content})]))  # type: ignore[list-item]
    assert "r1: web lowers no probe's loss." in text
    assert "0.875" in text and "3.25" in text and "influence, rank correlation, sources 1" in text


def test_a_selection_shows_what_it_dropped_of_each_capability_and_why_it_stopped():
    rules = SelectConfig(
        name="select1",
        seq_len=24,
        candidate_tokens=900,
        probe_rows=6,
        batch_rows=4,
        budget_tokens=100,
        max_epochs=4.0,
        seed=3,
        stop_below=0.9,
    )
    scores = np.array([[1.0], [3.0], [-1.0], [-1.0]])
    sources = {"sums": Scored(scores, np.array([10, 10, 10, 10]))}
    content = {**choose(rules, sources, {"maths": ("sums",)}).content, "influence": {"sums": [1.0]}}
    stage = SimpleNamespace(name="select1", files={"selection.json": content})
    text = text_of(selection_section([stage]))  # type: ignore[list-item]
    assert "What was kept of each capability" in text and "2 of 4" in text
    assert "The rounds stopped: select1: 66.7% of the influence is positive" in text
