"""The recipe of claims, planned: what each condition names is trained and evaluated."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from pocketlm.model.costs import num_parameters
from pocketlm.runner.dry_run import DryRun, dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.stages.evaluate import EvaluateConfig
from pocketlm.stages.judge import JudgeConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "claims.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return sys.modules[load_recipe(RECIPE).__module__]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    return dry_run(load_recipe(RECIPE), tmp_path_factory.mktemp("claims"), seeds=2)


def test_every_condition_is_about_arms_that_are_evaluated_for_each_seed(
    planned: DryRun, module: ModuleType
) -> None:
    configs = {call.name: call.config for call in planned.calls}
    judged = [call for call in planned.calls if isinstance(call.config, JudgeConfig)]
    assert len(judged) == len(module.CLAIMS) == 11
    for call in judged:
        arms = set(call.config.arms)
        for goal in call.config.parts:
            assert {goal.model, goal.compared_to} <= arms | {None}, goal.text
        evaluations, read = call.inputs["evaluations"], call.inputs["records"]
        assert isinstance(evaluations, list) and isinstance(read, list)
        assert len(evaluations) == 2
        for folder in evaluations:
            evaluation = configs[folder.name]
            assert isinstance(evaluation, EvaluateConfig) and set(evaluation.labels) == arms
        # its seconds are those of its own stages, the evaluations among them
        records = {record.parent for record in read}
        assert set(evaluations) <= records


def test_a_claim_may_have_more_seeds_than_the_others(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    calls = dry_run(
        recipe, tmp_path, claim="repetition,quantization", seeds=2, more="quantization=4"
    ).calls
    numbers = {}
    for call in calls:
        if isinstance(call.config, JudgeConfig):
            evaluations = call.inputs["evaluations"]
            assert isinstance(evaluations, list)
            numbers[call.name] = len(evaluations)
    assert numbers == {"repetition": 2, "quantization": 4}
    for wrong in ("quantization", "quantization=x", "merging=4", "quantization=0"):
        with pytest.raises(ValueError, match=r"give NAME=NUMBER, of the claims that run|at least"):
            dry_run(recipe, tmp_path, claim="quantization", more=wrong)


def test_what_is_called_equal_in_size_is(module: ModuleType) -> None:
    size = num_parameters(module.TINY)
    for shape in module.SHAPES.values():
        assert num_parameters(shape) == pytest.approx(size, rel=0.01)
    # the halves of two phases together have the shares of one
    for name, share in module.SHARES.items():
        assert module.GENERAL[name] + module.REASONING[name] == pytest.approx(2 * share)
    # a pass forward of the teacher, against one forward and backward
    assert num_parameters(module.TEACHER) == pytest.approx(3 * size, rel=0.05)


def test_a_claim_that_is_unknown_and_a_study_that_has_not_finished_are_refused(
    tmp_path: Path,
) -> None:
    recipe = load_recipe(RECIPE)
    with pytest.raises(ValueError, match="claim 'merge' is unknown; known: all, positional_"):
        dry_run(recipe, tmp_path, claim="filtering,merge")
    with pytest.raises(FileNotFoundError, match="holds no evaluation; finish it first"):
        dry_run(recipe, tmp_path, claim="repetition", study=tmp_path)
