"""What is told of probe sets: in the report, and in the plan before they are built."""

from pathlib import Path
from typing import Any

import pytest
from test_build_probes import CONFIG

from pocketlm.estimate.stages import plan_stages
from pocketlm.model.files import write_json
from pocketlm.report.markup import to_html
from pocketlm.report.probes import probes_section
from pocketlm.report.timeline import Stage
from pocketlm.runner.dry_run import DryRun
from pocketlm.stages.probes import build_probes


def figures(of: int, kept: int, **dropped: Any) -> dict[str, Any]:
    example = {"score": 0.25, "text": "<b>bold</b> and wrong", **dropped}
    kept_one = {"score": 0.75, "text": "whole and right"}
    return {"of": of, "kept": kept, "examples": {"kept": [kept_one], "dropped": [example]}}


CONTENT: dict[str, Any] = {
    "vocabulary": "00",
    "capabilities": {
        "knowledge": {"web": {"documents": 7, "tokens": 700}},
        "maths": {"web": {"documents": 5, "tokens": 1500}, "sums": {"documents": 4, "tokens": 80}},
    },
    "steps": [
        {"step": "quality", "sources": {"web": figures(90, 41), "sums": figures(60, 22)}},
        {"step": "ask", "skipped": "no asker"},
        {"step": "ask_by_capability", "skipped": "no asker"},
        {
            "step": "deduplication",
            "sources": {"web": figures(41, 33, like="and right"), "sums": figures(22, 19)},
        },
        {"step": "size", "capability": "knowledge", "sources": {"web": figures(33, 7)}},
        {
            "step": "size",
            "capability": "maths",
            "sources": {"web": figures(33, 5), "sums": figures(19, 4)},
        },
    ],
}


def test_the_report_shows_what_each_step_kept_of_each_source_and_examples():
    stage = Stage("probes", {"seconds": 1.0}, {"probes.json": CONTENT})
    section = probes_section([stage], examples=4)
    assert section is not None
    tables = {table.get("aria-label"): table for table in section.iter("div") if table.get("role")}
    (maths,) = [table for name, table in tables.items() if name and "for maths" in name]
    rows = [["".join(cell.itertext()) for cell in row] for row in maths.iter("tr")]
    assert rows == [
        ["source", "held out", "quality", "none alike", "size"],
        ["web", "90", "41", "33", "5"],
        ["sums", "60", "22", "19", "4"],
    ]
    html = to_html(section)
    assert "knowledge: 7 documents, 700 tokens; maths: 9 documents, 1,580 tokens" in html
    assert "Steps passed over: asked (no asker), asked for it (no asker)." in html
    assert "&lt;b&gt;bold" in html and "<b>bold" not in html and "Like: and right" in html
    without = probes_section([stage], examples=0)
    assert without is not None and "whole and right" not in to_html(without)
    assert probes_section([Stage("mix", {"seconds": 1.0}, {"mix.json": {}})], examples=4) is None


def test_the_plan_counts_a_pass_of_the_asker_for_each_question(tmp_path, asker_like: Path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    sources = {
        name: {
            "domain": "maths",
            "kept": {"train": {"tokens": 9}, "probe": {"tokens": 1000 * place}},
        }
        for place, name in enumerate(("forum", "lessons", "web"), start=1)
    }
    write_json(corpus / "curation.json", {"sources": sources})
    run = DryRun(tmp_path / "run")
    run(build_probes, CONFIG, corpus=corpus, asker=asker_like)
    (planned,) = plan_stages(run.calls)
    # the general prompt once, half of it for each capability: web serves two
    assert planned.tokens == 1000 * 1.5 + 2000 * 1.5 + 3000 * 2
    assert planned.flops and planned.at_most
    bare = DryRun(tmp_path / "bare")
    bare(build_probes, CONFIG, corpus=corpus)
    (planned,) = plan_stages(bare.calls)
    assert planned.tokens == 6000 and planned.flops == 0
    other = DryRun(tmp_path / "other", missing_ok=True)
    other(build_probes, CONFIG, corpus=tmp_path / "nowhere", asker=asker_like)
    (planned,) = plan_stages(other.calls)
    assert planned.flops is None and "is known when that is done" in planned.notes[0]


@pytest.fixture
def asker_like(tmp_path: Path) -> Path:
    """The config of a model, which is all that a plan reads of it."""
    folder = tmp_path / "asker"
    folder.mkdir()
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
    )
    return folder
