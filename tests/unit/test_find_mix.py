"""The stage that compares mixes: its proxies are trained as any model, and can be interrupted."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import on_ranks
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import chosen_shares, open_shards
from pocketlm.data.mixing.given import GivenMix
from pocketlm.data.mixing.influence import measure_influence
from pocketlm.data.mixing.problem import Milestone, Mix, MixProblem
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.swarm import SwarmMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.batch import Batch
from pocketlm.model.costs import flops_of
from pocketlm.model.files import read_json, write_json
from pocketlm.model.transformer import Transformer
from pocketlm.stages import find_mix as stage
from pocketlm.stages import proxies
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.proxies import Proxies, shares_key
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, lr_at, make_optimizers

PROXY = small(
    vocab_size=VOCAB_SIZE, num_hidden_layers=1, max_position_embeddings=32, initializer_range=0.1
)
OPTIM = OptimConfig(
    lr=1e-2, num_steps=6, warmup_steps=1, final_lr_share=0.1, compute_dtype="float32"
)
CONFIG = MixConfig(
    name="mix",
    methods={
        "by utility": UtilityMix(num_gradient_probes=3, step_sizes=(1.0,)),
        "mostly sums": GivenMix(shares={"sums": 0.75, "prose": 0.25}),
        "flat": UniformMix(),
        "sized": ProportionalMix(),
    },
    selected="by utility",
    proxy=PROXY,
    optim=OPTIM,
    seq_len=24,
    rows_per_step=4,
    micro_batch_size=1,
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
def mixed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_json(find_mix(CONFIG, tmp_path_factory.mktemp("mixed"), corpus=corpus) / "mix.json")


def test_any_number_of_mixes_is_compared_under_the_names_of_the_config(mixed):
    assert list(mixed["mixes"]) == list(CONFIG.methods) and mixed["selected"] == "by utility"
    assert mixed["shares"] == mixed["mixes"]["by utility"]["shares"]
    assert mixed["mixes"]["mostly sums"]["shares"] == {"prose": 0.25, "scripts": 0.0, "sums": 0.75}
    bits = {name: mix["bits_per_byte"] for name, mix in mixed["mixes"].items()}
    assert all(set(losses) == {*DOMAINS.values(), "mean"} for losses in bits.values())
    # what was trained on is predicted best
    assert bits["mostly sums"]["maths"] == min(losses["maths"] for losses in bits.values())
    assert bits["mostly sums"]["code"] == max(losses["code"] for losses in bits.values())


def test_a_method_may_simulate_several_runs_each_on_shares_of_its_own(
    corpus, tmp_path, monkeypatch
):
    def weight(milestone: Milestone) -> float:
        return float(milestone.model.model.embed_tokens.weight.detach().sum())

    def twice(config: UtilityMix, problem: MixProblem) -> Mix:
        mixes = [{source: float(source == name) for source in DOMAINS} for name in DOMAINS]
        figures = [problem.simulate(shares, 1, weight) for shares in mixes[:2]]
        assert figures[0] != figures[1]
        return Mix(shares=mixes[0])

    monkeypatch.setattr(stage, "METHODS", {UtilityMix: twice})
    method = {"twice": UtilityMix(num_gradient_probes=1)}
    find_mix(replace(CONFIG, methods=method, selected="twice"), tmp_path, corpus=corpus)
    folders = {folder.name for folder in (tmp_path / "proxies").iterdir()}
    assert folders == {"twice-simulated-1", "twice-simulated-2"}  # the first is its mix too


def test_a_milestone_of_the_simulated_run_is_the_model_that_a_plain_loop_has_at_that_step(
    corpus, tmp_path
):
    seen: dict[float, dict[str, torch.Tensor]] = {}

    def measure(milestone: Milestone) -> float:
        seen[milestone.lr] = milestone.model.state_dict()
        return milestone.lr

    rows = {name: TextRows(s, 24, 0) for name, s in open_shards(corpus, "train").items()}
    flat = dict.fromkeys(DOMAINS, 1 / 3)

    def simulated() -> list[float]:
        return Proxies(CONFIG, tmp_path, corpus).simulate(iter(["run"]), flat, 3, measure)

    lrs = simulated()
    assert lrs == [lr_at(OPTIM, step) for step in (1, 3, 5)]
    assert simulated() == lrs  # from the files

    layout = BatchPlan(seq_len=24, rows_per_step=4, micro_batch_size=1, seed=CONFIG.seed)
    batches = make_batches(rows, flat, layout, separate_documents=False)
    model = Transformer(PROXY, seed=CONFIG.seed)
    optimizers = make_optimizers(model, OPTIM)
    for step in range(6):
        lr = lr_at(OPTIM, step)
        loop.train_step(model, optimizers, batches(step), next_token_loss, lr, 1.0, step)
        if step % 2:
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, seen[lr][name]), (step, name)


@pytest.mark.parametrize("calls", [5, 11, 22])
def test_an_interrupted_comparison_goes_on_and_ends_with_the_same_mixes(
    calls, mixed, corpus, tmp_path, monkeypatch
):
    done = 0
    train_step = loop.train_step

    def failing(*arguments, **options):
        nonlocal done
        done += 1
        if done == calls:
            raise KeyboardInterrupt
        return train_step(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        find_mix(CONFIG, tmp_path, corpus=corpus)
    find_mix(CONFIG, tmp_path, corpus=corpus)
    assert (
        done < calls + CONFIG.num_runs(3) * OPTIM.num_steps
    )  # the steps before the last state are not repeated
    assert read_json(tmp_path / "mix.json") == mixed
    assert not [*tmp_path.rglob("resume"), *tmp_path.rglob("milestones")]


def mixed_on_ranks(out: Path, corpus: Path) -> None:
    find_mix(CONFIG, out, corpus=corpus)


def influences(out: Path, corpus: Path) -> tuple[list[dict[str, Any]], int]:
    """What influence measures at the milestones of a run, and how many batches this rank moved."""
    moved = 0
    to_device = proxies.to_device

    def counted(*arguments: Any) -> Batch:
        nonlocal moved
        moved += 1
        return to_device(*arguments)

    method = partial(measure_influence, capability="maths", damping=0.1)
    flat = dict.fromkeys(DOMAINS, 1 / 3)
    proxies.to_device = counted
    try:
        together = Proxies(CONFIG, out, corpus)
        return together.simulate(iter(["run"]), flat, 2, method, fixed_rows=5), moved
    finally:
        proxies.to_device = to_device


def test_ranks_divide_the_rows_of_a_milestone(corpus, tmp_path):
    """Fewer milestones than ranks leave none idle, and each row has the influence it has alone."""
    (alone, moved), *_ = on_ranks(1, tmp_path, influences, tmp_path / "alone", corpus)
    outcomes = on_ranks(4, tmp_path, influences, tmp_path / "together", corpus)
    assert all(isinstance(outcome, tuple) for outcome in outcomes), outcomes
    for together, moved_here in outcomes:
        assert moved_here < 0.7 * moved
        for one, other in zip(alone, together, strict=True):
            assert one["tokens"] == other["tokens"] and len(one["tokens"]["prose"]) == 5
            for score in ("datainf", "adam"):
                for source, values in one[score].items():
                    size = max(map(abs, values))
                    assert other[score][source] == pytest.approx(values, abs=1e-3 * size)


def test_mixes_of_the_same_shares_are_one_proxy(corpus, tmp_path):
    """The prior of a line search is its simulated run, and what it chose is one of its steps."""
    config = replace(CONFIG, max_epochs=50.0)  # no cap changes the prior
    out = find_mix(config, tmp_path, corpus=corpus)
    folders = {folder.name for folder in (out / "proxies").iterdir()}
    trained = {"by utility-simulated-1", "by utility-step-1", "mostly sums", "flat"}
    assert folders == trained and config.num_runs(3) == len(trained)
    mixes = read_json(out / "mix.json")["mixes"]
    found, step = mixes["by utility"], mixes["by utility"]["step_size"]
    assert mixes["sized"]["shares"] == pytest.approx(found["line_search"]["0"]["shares"])
    assert found["shares"] == pytest.approx(found["line_search"][f"{step:g}"]["shares"])
    if step == 0:
        assert found["bits_per_byte"] == mixes["sized"]["bits_per_byte"]


def test_four_ranks_find_what_one_finds(mixed, corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert on_ranks(4, tmp_path, mixed_on_ranks, out, corpus) == [None] * 4
    together = read_json(out / "mix.json")
    assert list(together["mixes"]) == list(mixed["mixes"])
    for name, mix in mixed["mixes"].items():
        other = together["mixes"][name]
        # Adam's first steps are signs of gradients, some of them of rounding
        assert other["shares"] == pytest.approx(mix["shares"], rel=5e-3)
        assert other["bits_per_byte"] == pytest.approx(mix["bits_per_byte"], rel=1e-4)
    for probe, utility in mixed["mixes"]["by utility"]["utility_by_probe"].items():
        other = together["mixes"]["by utility"]["utility_by_probe"][probe]
        size = max(map(abs, utility.values()))
        assert other == pytest.approx(utility, rel=1e-3, abs=2e-3 * size)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (GivenMix(shares={"poems": 1.0}), r"mix\.methods\.odd\.shares: .*poems; known: prose"),
        (
            UtilityMix(num_gradient_probes=1, probe_weights={"law": 1.0}),
            r"mix\.methods\.odd\.probe_weights names law; the corpus serves code, knowledge, maths",
        ),
    ],
)
def test_a_method_that_names_what_the_corpus_lacks_is_refused(method, message, corpus, tmp_path):
    optim = replace(OPTIM, num_steps=2)
    config = replace(CONFIG, methods={"odd": method}, selected="odd", optim=optim)
    with pytest.raises(ValueError, match=message):
        find_mix(config, tmp_path, corpus=corpus)


def test_a_comparison_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="selected 'best' is none of the mixes; known: by utility"):
        replace(CONFIG, selected="best")
    with pytest.raises(ValueError, match=r"num_gradient_probes 3 exceeds optim\.num_steps 2"):
        replace(CONFIG, optim=replace(OPTIM, num_steps=2))


@pytest.mark.parametrize("opened", [2, 6])  # while milestones are measured; while mixes are
def test_what_was_measured_before_a_stop_is_not_measured_again(
    opened, mixed, corpus, tmp_path, monkeypatch
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
        find_mix(CONFIG, tmp_path, corpus=corpus)
    find_mix(CONFIG, tmp_path, corpus=corpus)
    assert read_json(tmp_path / "mix.json") == mixed
    # the start and three milestones, then the line search and the mixes by domain
    different = {shares_key(mix["shares"]) for mix in mixed["mixes"].values()}
    assert calls == 1 + 4 + (2 + len(different)) * len(DOMAINS)


def test_a_stop_before_the_states_are_deleted_trains_nothing_again(
    mixed, corpus, tmp_path, monkeypatch
):
    def failing(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(proxies, "shutil", SimpleNamespace(rmtree=failing))
        with pytest.raises(KeyboardInterrupt):
            find_mix(CONFIG, tmp_path, corpus=corpus)
    assert list(tmp_path.rglob("resume"))
    monkeypatch.setattr(proxies, "train", failing)
    find_mix(CONFIG, tmp_path, corpus=corpus)
    assert read_json(tmp_path / "mix.json") == mixed and not list(tmp_path.rglob("resume"))


def test_each_mix_is_trained_with_so_many_seeds_and_the_first_is_that_of_one(
    mixed, corpus, tmp_path
):
    given = {name: CONFIG.methods[name] for name in ("mostly sums", "flat")}
    config = replace(CONFIG, methods=given, selected="flat")
    seeds = read_json(
        find_mix(replace(config, num_seeds=3), tmp_path / "seeds", corpus=corpus) / "mix.json"
    )["mixes"]
    third = replace(config, seed=CONFIG.seed + 2 * proxies.SEEDS_APART)
    alone = read_json(find_mix(third, tmp_path / "third", corpus=corpus) / "mix.json")["mixes"]
    for name, mix in seeds.items():
        by_seed = mix["bits_per_byte_by_seed"]
        assert by_seed[0] == mixed["mixes"][name]["bits_per_byte"]
        assert by_seed[2] == alone[name]["bits_per_byte"]
        for domain in (*DOMAINS.values(), "mean"):
            values = np.array([figures[domain] for figures in by_seed])
            assert len(set(values)) == 3
            assert mix["bits_per_byte"][domain] == pytest.approx(values.mean())
            assert mix["bits_per_byte_deviation"][domain] == pytest.approx(values.std(ddof=1))
    assert (
        replace(config, num_seeds=3).num_runs(3) == 6 == len([*tmp_path.glob("seeds/*/*/*.jsonl")])
    )
    assert not [*tmp_path.rglob("resume"), *tmp_path.rglob("milestones")]
    with pytest.raises(ValueError, match=r"mix\.num_seeds 0 must be at least 1"):
        replace(CONFIG, num_seeds=0)


def test_the_weighted_mean_that_a_method_was_asked_for_stands_beside_the_plain_one(
    mixed, corpus, tmp_path
):
    assert "objectives" not in mixed  # each capability counts alike
    asked = UtilityMix(
        num_gradient_probes=1, step_sizes=(1.0,), probe_weights={"maths": 6, "code": 2}
    )
    methods = {"by sums": asked, "flat": UniformMix(), "twice": replace(asked, step_sizes=(0.5,))}
    config = replace(CONFIG, methods=methods, selected="flat")
    content = read_json(find_mix(config, tmp_path, corpus=corpus) / "mix.json")
    weights = {"code": 0.25, "knowledge": 0.0, "maths": 0.75}
    assert content["objectives"] == {"mean for by sums": weights}
    columns = {name: mix.get("objective") for name, mix in content["mixes"].items()}
    assert columns == {"by sums": "mean for by sums", "flat": None, "twice": "mean for by sums"}
    for mix in content["mixes"].values():
        bits = mix["bits_per_byte"]
        assert bits["mean for by sums"] == pytest.approx(0.25 * bits["code"] + 0.75 * bits["maths"])
    assert content["mixes"]["flat"]["bits_per_byte"]["mean"] == pytest.approx(
        mixed["mixes"]["flat"]["bits_per_byte"]["mean"]
    )


def test_what_a_method_cost_is_its_own_trainings_and_gradients(
    mixed, corpus, tmp_path, monkeypatch
):
    row = flops_of(PROXY, 1, CONFIG.seq_len).training()
    costs = {name: mix["cost"] for name, mix in mixed["mixes"].items()}
    free = {"proxies": 0, "gradient_rows": 0, "flops": 0}
    assert costs == {
        # the simulated run and a step from it, of 6 steps of 4 rows each; at its start and 3
        # milestones 4 rows of 3 sources and of 3 capabilities
        "by utility": {"proxies": 2, "gradient_rows": 96, "flops": (48 + 96) * row},
        **dict.fromkeys(("mostly sums", "flat", "sized"), free),
    }

    def swarm(config: UniformMix, problem: MixProblem) -> Mix:
        one, two = {"prose": 1.0}, {"sums": 1.0}
        assert set(problem.losses({"one": one, "two": two})) == {"one", "two"}
        return Mix(shares={**dict.fromkeys(DOMAINS, 0.0), **one})

    monkeypatch.setattr(stage, "METHODS", {UniformMix: swarm})
    config = replace(CONFIG, methods={"swarm": UniformMix()}, selected="swarm")
    content = read_json(find_mix(config, tmp_path, corpus=corpus) / "mix.json")
    assert content["mixes"]["swarm"]["cost"] == {
        "proxies": 2,
        "gradient_rows": 0,
        "flops": 2 * 24 * row,
    }


def test_a_run_of_a_method_is_compared_and_not_trained_again(corpus, tmp_path, monkeypatch):
    trained: list[str] = []
    train = proxies.train

    def counted(*arguments, **options):
        trained.append(options["label"].strip())
        return train(*arguments, **options)

    def swarm(config: UniformMix, problem: MixProblem) -> Mix:
        sums = {**dict.fromkeys(DOMAINS, 0.0), "sums": 1.0}
        problem.losses({"1": sums})
        return Mix(shares={**sums, "sums": 0.5, "prose": 0.5}, beside={"best": "1"})

    monkeypatch.setattr(stage, "METHODS", {UniformMix: swarm})
    monkeypatch.setattr(proxies, "train", counted)
    config = replace(CONFIG, methods={"swarm": UniformMix()}, selected="swarm", num_seeds=2)
    mixes = read_json(find_mix(config, tmp_path, corpus=corpus) / "mix.json")["mixes"]
    assert list(mixes) == ["swarm", "best of swarm"]
    assert mixes["best of swarm"]["method"] == "the proxy swarm-1"
    maths = {name: mix["bits_per_byte"]["maths"] for name, mix in mixes.items()}
    assert maths["best of swarm"] < maths["swarm"]
    steps = [path.read_text().count("\n") for path in tmp_path.rglob("metrics.jsonl")]
    assert steps == [OPTIM.num_steps] * 4  # of each of two seeds, once
    assert set(trained) == {"swarm", "swarm-1", "swarm, seed 2", "swarm-1, seed 2"}


def test_a_training_may_take_any_of_the_compared_mixes(corpus, tmp_path):
    methods = {name: CONFIG.methods[name] for name in ("mostly sums", "flat")}
    out = find_mix(replace(CONFIG, methods=methods, selected="flat"), tmp_path, corpus=corpus)
    mixes = read_json(out / "mix.json")["mixes"]
    for name, mix in mixes.items():
        assert chosen_shares(None, corpus, "base", out / "mixes" / name) == mix["shares"]
    assert chosen_shares(None, corpus, "base", out) == mixes["flat"]["shares"]


def test_a_training_may_take_the_shares_of_a_selection_and_not_its_text(corpus, tmp_path):
    shares = {"sums": 0.25, "prose": 0.75}
    write_json(tmp_path / "selection.json", {"shares": shares})
    assert chosen_shares(None, corpus, "base", tmp_path) == shares


def test_a_swarm_is_trained_once_and_its_best_run_is_compared_beside_its_optimum(
    corpus, tmp_path, monkeypatch
):
    """And a stop in its midst trains no proxy again."""
    swarm = SwarmMix(num_runs=4, refine_runs=1, folds=2, strengths=(1.0, 9.0))
    config = replace(CONFIG, methods={"swarm": swarm, "flat": UniformMix()}, selected="swarm")
    steps = 0
    train_step = loop.train_step

    def counted(*arguments, **options):
        nonlocal steps
        steps += 1
        if steps == 2 * OPTIM.num_steps + 1:
            raise KeyboardInterrupt
        return train_step(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", counted)
    with pytest.raises(KeyboardInterrupt):
        find_mix(config, tmp_path, corpus=corpus)
    file = read_json(find_mix(config, tmp_path, corpus=corpus) / "mix.json")
    assert config.num_runs(3) == 7 and steps == 1 + 7 * OPTIM.num_steps

    runs = {run["run"]: run for run in file["mixes"]["swarm"]["swarm"]}
    assert [*runs] == ["run-001", "run-002", "run-003", "run-004", "refined-001"]
    best = min(runs, key=lambda name: sum(runs[name]["bits_per_byte"].values()))
    assert list(file["mixes"]) == ["swarm", "flat", "best of swarm"]
    compared = file["mixes"]["best of swarm"]
    assert compared["method"] == f"the proxy swarm-{best}"
    assert compared["shares"] == runs[best]["shares"]
    # it was chosen by other text than it is compared on
    assert compared["bits_per_byte"]["maths"] != runs[best]["bits_per_byte"]["maths"]
    folders = {folder.name for folder in (tmp_path / "proxies").iterdir()}
    assert folders == {"swarm", "flat", *(f"swarm-{name}" for name in runs)}
    assert file["shares"] == file["mixes"]["swarm"]["shares"]
