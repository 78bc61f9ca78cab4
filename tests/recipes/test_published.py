"""The recipes of the two papers: the networks have the published number of weights, and a dry pass
needs no data.
"""

import io
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pocketlm.data.batches import ConversationRows
from pocketlm.eval.suites.named import named_suites
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import Transformer
from pocketlm.runner.dry_run import DryRun, dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.runner.tables import key_figures, stages_table

RECIPES = Path(__file__).parents[2] / "recipes"
R1 = load_recipe(RECIPES / "r1.py")
PRO = load_recipe(RECIPES / "pro.py")


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


# R1, table 1 and README; Pro: the model card; MobileLLM 2024: README of its repository
PUBLISHED = {
    "r1-140m": 140_248_512,
    "r1-360m": 359_431_168,
    "r1-950m": 949_685_760,
    "pro": 1_084_453_120,
    "mobilellm-125m": 124_635_456,
    "mobilellm-350m": 345_355_200,
    "mobilellm-600m": 603_188_352,
    "mobilellm-1b": 1_005_461_760,
    "mobilellm-1.5b": 1_511_188_800,
    "mobilellm-ls-125m": 124_635_456,  # shared blocks count once
    "mobilellm-ls-350m": 345_355_200,
}


def test_every_preset_has_the_published_number_of_parameters() -> None:
    assert {name: parameters(config) for name, config in PRESETS.items()} == PUBLISHED


def test_the_recipes_train_the_published_networks() -> None:
    assert set(sys.modules["recipe_r1"].SHAPES) == {"140m", "360m", "950m"}
    assert sys.modules["recipe_pro"].PHASE1.model == PRESETS["pro"]


def test_pro_has_the_published_global_layers_and_ls_a_cache_slot_for_each_application() -> None:
    assert [i for i in range(30) if PRESETS["pro"].window(i) is None] == [
        0,
        4,
        8,
        12,
        16,
        20,
        24,
        28,
        29,
    ]
    assert PRESETS["mobilellm-ls-125m"].applications == 60
    assert PRESETS["mobilellm-ls-350m"].applications == 64


@pytest.fixture
def dry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DryRun:
    monkeypatch.chdir(tmp_path)  # where no tokenizer and no teacher lies
    recipe, flags = request.param
    return dry_run(recipe, tmp_path / "run", missing_ok=True, **flags)


@pytest.mark.parametrize(
    "dry", [(R1, {"size": "950m"}), (PRO, {})], indirect=True, ids=["r1", "pro"]
)
def test_a_dry_pass_without_data_prints_every_stage_and_what_it_needs(dry: DryRun) -> None:
    states = {call.name: call.state() for call in dry.calls}
    assert set(states.values()) >= {"to do"} and states["phase1"].startswith(
        ("to do", "needs teacher")
    )
    first, second = (states[call.name] for call in dry.calls[:2])
    # the teacher's words are compared before anything is read or trained
    assert dry.calls[0].name == "teacher-check" and first.startswith("needs ") and "Llama-" in first
    assert second.startswith("needs Llama-")
    assert all(key_figures(call.config) for call in dry.calls)


@pytest.mark.parametrize("dry", [(R1, {"size": "950m"})], indirect=True, ids=["r1"])
def test_a_dry_run_in_80_columns_has_a_line_a_stage_and_whole_words(
    dry: DryRun, tmp_path: Path
) -> None:
    text = stages_table(dry, 80)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(text, soft_wrap=True)
    title, heading, *lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert title.startswith(f"{len(dry.calls)} stages in /") and heading.split()[0] == "stage"
    for call, line in zip(dry.calls, lines, strict=False):
        _, name, function, *rest = line.split()
        assert (name, function) == (call.name, call.record["stage"]) and len(line) <= 80
        state = "needs input" if call.missing() else "to do"
        *words, last = rest[len(state.split()) :]
        figures = key_figures(call.config).split()
        assert " ".join(rest).startswith(state) and words == figures[: len(words)]
        assert last in ("…", figures[-1]) and len(words) > 1
    assert lines[len(dry.calls)] == f"{dry.calls[0].name} needs {', '.join(dry.calls[0].missing())}"
    assert len(lines) < len(dry.calls) + 10


@pytest.mark.parametrize("dry", [(R1, {"size": "950m"})], indirect=True, ids=["r1"])
def test_r1_prints_the_figures_of_its_tables(dry: DryRun) -> None:
    told = {call.name: key_figures(call.config) for call in dry.calls}
    assert (
        "500,000 steps x 2,048 rows x 2,048" in told["phase1"]
        and "fineweb-edu 63.75 %" in told["phase1"]
    )
    assert "openwebmath 23.33 %" in told["phase2"] and "lr 0.004" in told["phase2"]
    assert "50,000 steps x 512 rows x 4,096" in told["mid1"] and "dclm 37.03 %" in told["mid1"]
    assert (
        "512 samples x 4,096" in told["general"] and "1,024 samples x 32,768" in told["reasoning"]
    )
    assert "needs Llama-3.1-8B-Instruct" in [call.state() for call in dry.calls]


@pytest.mark.parametrize("dry", [(R1, {"mix": "found"})], indirect=True, ids=["r1"])
def test_r1_plans_rounds_that_select_and_distil_until_little_is_left(
    dry: DryRun, tmp_path: Path
) -> None:
    """Each selection has the one before it; its shares, not the published ones, are trained on."""
    calls = {call.name: call for call in dry.calls}
    run, rounds = tmp_path / "run", [name for name in calls if name.startswith("select")]
    assert rounds == ["select1", "select2", "select3"]
    for turn in (1, 2, 3):
        chosen, trained = calls[f"select{turn}"], calls[f"mid{turn}"]
        previous = run / f"select{turn - 1}" if turn > 1 else None
        assert chosen.inputs["previous"] == previous
        assert chosen.inputs["model"] == run / (f"mid{turn - 1}" if turn > 1 else "phase2")
        assert (chosen.config.score, chosen.config.stop_below) == ("datainf", 0.5)
        assert trained.config.shares is None and trained.inputs["selection"] == run / chosen.name
    assert calls["general"].inputs["model"] == run / "mid3"


def test_r1_knows_two_kinds_of_mixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--mix best: published or found"):
        dry_run(R1, tmp_path / "run", missing_ok=True, mix="best")


@pytest.mark.parametrize("dry", [(PRO, {})], indirect=True, ids=["pro"])
def test_pro_trains_the_four_bits_of_both_columns_of_its_table_from_one_base(
    dry: DryRun, tmp_path: Path
) -> None:
    quantized = {
        call.config.scheme: call for call in dry.calls if call.record["stage"] == "quantize"
    }
    assert list(quantized) == ["int4_group32", "int4_channel"]
    assert [call.inputs["model"] for call in quantized.values()] == [tmp_path / "run" / "base"] * 2
    assert "int4_channel, QAT of 80," in key_figures(quantized["int4_channel"].config)


@pytest.mark.parametrize("dry", [(R1, {})], indirect=True, ids=["r1"])
def test_r1_learns_the_samples_of_its_table_and_four_times_each(dry: DryRun) -> None:
    config = next(call.config for call in dry.calls if call.name == "reasoning")
    code = sum(config.max_conversations.values())
    assert code == 2_160_000 and set(config.max_conversations) == {
        "opencode-python",
        "opencode-cpp",
    }
    samples = 3_200_000 + 803_000 + code  # R1, table 5
    assert config.optim.num_steps * config.rows_per_step == pytest.approx(4 * samples, rel=1e-3)
    assert config.too_long == "truncate"


@pytest.mark.parametrize("dry", [(PRO, {})], indirect=True, ids=["pro"])
def test_pro_raises_two_sets_and_goes_on_with_the_others(dry: DryRun) -> None:
    broad, raised = (call.config for call in dry.calls if call.record["stage"] == "finetune")
    # Pro, section 9: 7.64M samples, Nemotron math and FLAN about 70 % of them
    assert sum(broad.max_conversations.values()) == pytest.approx(0.7 * 7_640_000)
    rows = {**broad.max_conversations, "tulu3": 866_000, "nemotron-science": 708_920}
    natural = {name: count / sum(rows.values()) for name, count in rows.items()}
    odds = {name: raised.conversation_shares[name] / natural[name] for name in rows}
    assert (
        odds["tulu3"] == pytest.approx(2 * odds["flan"]) == pytest.approx(2 * odds["nemotron-math"])
    )
    assert odds["nemotron-science"] == pytest.approx(odds["tulu3"])
    assert "flan 31.47 %" in key_figures(raised)


@pytest.mark.parametrize("dry", [(R1, {}), (PRO, {})], indirect=True, ids=["r1", "pro"])
def test_shares_name_sources_of_their_corpus_and_sum_to_one(dry: DryRun) -> None:
    sources: dict[object, set[str]] = {}
    for call in dry.calls:
        if call.record["stage"] == "curate":
            sources[call.folder] = {source.name for source in call.config.sources}
        caps = getattr(call.config, "max_conversations", {})
        assert not caps or set(caps) <= sources[call.inputs["corpus"]]
        shares = getattr(call.config, "shares", None)
        shares = shares or getattr(call.config, "conversation_shares", None)
        if shares:
            assert set(shares) <= sources[call.inputs["corpus"]]
            assert sum(shares.values()) == pytest.approx(1, abs=1e-3)  # as check_shares asks


def test_an_unknown_size_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="140m, 360m, 950m"):
        dry_run(R1, tmp_path, size="1b")


def test_without_the_teacher_or_the_tokenizer_a_real_run_stops_at_once_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Llama-3\.1-8B-Instruct does not exist"):
        dry_run(R1, tmp_path / "run")
    (tmp_path / "Llama-3.1-8B-Instruct").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Llama-3\.2-1B does not exist"):
        dry_run(R1, tmp_path / "run")


def test_unpacked_each_conversation_has_a_row_of_its_own() -> None:
    # three places each, for the last is a label alone
    conversations = [([1, 2, 3, 4], [False, True, True, True])] * 4
    packed, alone = (ConversationRows(conversations, 8, 0, packed=value) for value in (True, False))
    assert list(itertools.chain(*packed.rows)) == list(itertools.chain(*alone.rows)) == [0, 1, 2, 3]
    assert len(packed) == 2 and len(alone) == 4


@pytest.mark.parametrize(
    ("recipe", "models"),
    [(R1, {"evaluation-base": 1, "evaluation": 3}), (PRO, {"evaluation-base": 4, "evaluation": 1})],
    ids=["r1", "pro"],
)
def test_with_a_folder_of_benchmarks_the_recipe_ends_with_the_papers_evaluation(
    recipe: Callable[..., None], models: dict[str, int], tmp_path: Path
) -> None:
    dry = dry_run(recipe, tmp_path / "run", missing_ok=True, benchmarks=tmp_path / "benchmarks")
    last = {call.name: call for call in dry.calls[-2:]}
    for name, count in models.items():
        config = last[name].config
        assert config.data == str(tmp_path / "benchmarks") and len(config.labels) == count
        assert all(suite.protocol_name for suite in named_suites(config.suites))
    plain = dry_run(recipe, tmp_path / "run", missing_ok=True)
    assert [call.name for call in plain.calls] == [call.name for call in dry.calls[:-2]]
