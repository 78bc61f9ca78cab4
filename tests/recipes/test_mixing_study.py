"""The study of mixes, rehearsed on generated text to its last stage, and the page made from it."""

import importlib.util
import json
import sys
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest

from pocketlm.estimate.stages import plan_stages
from pocketlm.model.checkpoint import shape_of
from pocketlm.model.costs import num_parameters
from pocketlm.model.files import read_json
from pocketlm.rehearsal.rehearsed import prepare, rehearsed
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe, parse_flags
from pocketlm.runner.run import Run
from pocketlm.stages.judge import judge

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "mixing_study.py"
NAMES = ("uniform", "proportional", "utility", "cheap influence", "DataInf", "swarm")
ANSWERS: dict[str, dict[str, Any]] = {
    "gsm8k_test": {"question": "How many are 3 and 4?", "answer": "3 + 4 = 7\n#### 7"},
    "mbpp_test": {"prompt": "Add two numbers.", "code": "def add(a, b):\r\n    return a + b "},
    "arc_easy_test": {"query": "Question: Is ice cold?\nAnswer:", "choices": ["no", "yes"]},
    "arc_challenge_test": {"query": "Question: Is fire hot?\nAnswer:", "choices": ["no", "yes"]},
    "mmlu_validation": {"question": "1+1?", "subject": "maths", "choices": ["1", "2", "3", "4"]},
}


def study_script() -> ModuleType:
    path = ROOT / "benchmarks" / "mixing_study.py"
    spec = importlib.util.spec_from_file_location("mixing_study_page", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    for name, row in ANSWERS.items():
        gold = {"gold": 1} if "query" in row else {"answer": 1} if "choices" in row else {}
        lines = [json.dumps({**row, **gold}) + "\n" for _ in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def finished(answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    words = ["nowhere", str(answers), "--seeds", "2", "--effort", "0.1"]
    recipe = load_recipe(RECIPE)
    flags = parse_flags(recipe, RECIPE, words)
    calls = dry_run(recipe, folder / "nowhere", missing_ok=True, **flags).calls
    script = prepare(calls, folder, RECIPE, words, [], 1, all_formats=False)
    with Run(folder / "run") as run:
        rehearsed(run, script.with_suffix(".json"))
    return folder / "run"


def folder_of(name: str, number: int) -> str:
    """Of the network that a mix trained from one seed; its label in the evaluation too."""
    return f"{name.replace(' ', '-')}-{number}"


def test_the_study_trains_each_mix_from_each_seed_on_its_own_shares(finished: Path) -> None:
    mixes = read_json(finished / "mix" / "mix.json")["mixes"]
    assert tuple(mixes) == (*NAMES, "best of swarm")
    for name in NAMES:
        assert len(mixes[name]["bits_per_byte_by_seed"]) == 2
        for number in (1, 2):
            record = read_json(finished / folder_of(name, number) / "stage.json")
            place = Path(record["inputs"]["mix"]["path"])
            assert read_json(finished / place / "mix.json")["shares"] == mixes[name]["shares"]
    left_out = read_json(finished / "left-out" / "leave_one_out.json")
    assert len(left_out["effects"]) == 8 and left_out["num_seeds"] == 2
    figures = {(row["mix"], row["figure"]) for row in left_out["rank_correlations"]}
    assert {("utility", "utility_by_probe"), ("uniform", "shares")} <= figures
    page = (finished / "report" / "report.html").read_text()
    assert "What is lost without each source" in page and "Trained on: utility" in page


def test_the_page_holds_the_figures_of_the_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = study_script()
    monkeypatch.chdir(tmp_path)
    script.main([str(finished)])
    text = (tmp_path / "docs/results/mixing.md").read_text()
    models = read_json(finished / "evaluation" / "evaluation.json")["models"]
    for name in NAMES:
        suites = [models[folder_of(name, number)]["suites"] for number in (1, 2)]
        assert set(suites[0]) == {"bpb.gsm8k", "bpb.mbpp", "bpb.arc_easy", "bpb.arc_challenge"} | {
            "bpb.mmlu"
        }
        whole = mean(figures["value"] for by_suite in suites for figures in by_suite.values())
        assert f"| **{whole:.4f}** |" in text
        assert f"| {name} | " in text
    size = num_parameters(shape_of(finished / "uniform-1")) / 1e6
    assert f"compared at {size:.1f}M and 2 steps" in text
    assert "2 seeds each" in text and "| without | code | knowledge | maths |" in text
    assert (tmp_path / "docs/results/mixing.svg").read_text().count('class="seed"') == 12
    with pytest.raises(SystemExit, match=r"holds no mix\.json; finish the run first"):
        script.main([str(tmp_path / "none")])


def test_the_claim_on_mixing_is_judged_from_the_run(finished: Path, tmp_path: Path) -> None:
    claims = sys.modules[load_recipe(RECIPE.with_name("claims.py")).__module__]
    config, evaluations, records = claims.mixing(finished)
    judge(config, tmp_path, evaluations=evaluations, records=records)
    written = read_json(tmp_path / "claim.json")
    assert written["seeds"] == 2 and len(written["arms"]) == len(NAMES)
    models = read_json(finished / "evaluation" / "evaluation.json")["models"]
    for name in NAMES:
        figures = written["arms"][name.replace(" ", "-")]["figures"]["bits answers"]["figures"]
        assert figures == [
            pytest.approx(mean(s["value"] for s in models[folder_of(name, n)]["suites"].values()))
            for n in (1, 2)
        ]
    seconds = [read_json(file)["seconds"] for file in finished.glob("*/stage.json")]
    assert written["seconds"] == pytest.approx(sum(seconds)) and len(seconds) == 2 * 6 + 5


def test_the_verdict_follows_the_rule_that_was_fixed_before() -> None:
    script = study_script()

    def study(**means: float) -> Any:
        by_seed = {
            name: [{"gsm8k": value + off, "mbpp": value + off} for off in (-0.01, 0.0, 0.01)]
            for name, value in means.items()
        }
        mixes = {
            name: {"bits_per_byte": {"mean": value}, "shares": {"a": 1.0}}
            for name, value in means.items()
        }
        return script.Study(by_seed, mixes, {}, 10, 4_000_000, 10, 1_000_000)

    # deviations of 0.01 over 3 seeds: 2 x 0.01 x sqrt(2 / 3)
    lines = script.verdict(study(proportional=2.0, uniform=2.1, law=1.9))
    assert lines[0] == "Two mixes differ beyond 0.0163 bits per byte."
    assert lines[1] == "law is better than every other mix."
    assert "Against proportional: better are law; worse are uniform." in lines
    lines = script.verdict(study(proportional=2.0, uniform=2.1, law=1.99))
    assert lines[1] == "Nothing separates law and proportional, the lowest."
    assert "Against proportional: better are none; worse are uniform." in lines
    assert "rank correlation 1.00" in lines[-1]


def test_what_a_mix_as_good_as_the_swarms_costs_is_said_and_which_are_worse() -> None:
    script = study_script()
    costs = {"swarm": 2e12, "utility": 3e11, "DataInf": 4e12, "uniform": 0}
    means = {"swarm": 2.0, "utility": 2.01, "DataInf": 1.9, "uniform": 2.2}
    by_seed = {
        name: [{"gsm8k": value + off} for off in (-0.01, 0.0, 0.01)]
        for name, value in means.items()
    }
    mixes = {
        name: {"bits_per_byte": {"mean": 1.0}, "shares": {"a": 1.0}, "cost": {"flops": cost}}
        for name, cost in costs.items()
    }
    study = script.Study(by_seed, mixes, {}, 10, 4_000_000, 10, 1_000_000)
    (line,) = script.cost_against_swarm(study, 0.0163)
    assert line == (
        "To find a mix no worse than the swarm's: utility (0.15 of its FLOPs), DataInf (2 of its "
        "FLOPs); worse than it are uniform."
    )
    assert line in script.verdict(study)
    assert script.cost_against_swarm(script.Study({}, {}, {}, 1, 1, 1, 1), 0.1) == []


def test_the_study_is_planned_and_verifies_at_four_times_the_size(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    flags: dict[str, Any] = {"data": Path("nowhere"), "answers": Path("nowhere"), "seeds": 3}
    planned = {
        stage.call.name: stage
        for stage in plan_stages(dry_run(recipe, tmp_path, missing_ok=True, **flags).calls)
    }
    mix, left_out, verified = (planned[name].work for name in ("mix", "left-out", "utility-3"))
    assert mix and left_out and verified
    # six mixes and a run of the swarm from three seeds each; a simulated run, which is the mix by
    # size, and three steps, one of which is compared; two times three domain models, and a swarm of
    # 16, one of which is compared
    assert mix.copies == 7 * 3 + 4 - 2 + 6 + 16 - 1 and left_out.copies == 9 * 3
    assert 4 <= num_parameters(verified.model) / num_parameters(mix.model) <= 5
    with pytest.raises(ValueError, match="--effort 0 and --seeds 3: both must be above 0"):
        dry_run(recipe, tmp_path, missing_ok=True, **flags, effort=0)
