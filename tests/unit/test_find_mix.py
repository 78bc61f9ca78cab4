"""The stage that compares mixes: its proxies are trained as any model, and can be interrupted."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_processes import on_ranks
from shapes import small
from small_corpus import DOMAINS, VOCAB_SIZE, write_corpus

from pocketlm.data.batches import BatchPlan, TextRows, make_batches
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.mixing.given import GivenMix
from pocketlm.data.mixing.problem import Milestone, Mix, MixProblem
from pocketlm.data.mixing.proportional import ProportionalMix
from pocketlm.data.mixing.uniform import UniformMix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.model.files import read_json
from pocketlm.model.transformer import Transformer
from pocketlm.stages import find_mix as stage
from pocketlm.stages import proxies
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.proxies import Proxies
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
    assert folders == {"twice", "twice-simulated-1", "twice-simulated-2"}


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
        done < calls + CONFIG.num_runs * OPTIM.num_steps
    )  # the steps before the last state are not repeated
    assert read_json(tmp_path / "mix.json") == mixed
    assert not [*tmp_path.rglob("resume"), *tmp_path.rglob("milestones")]


def mixed_on_ranks(out: Path, corpus: Path) -> None:
    find_mix(CONFIG, out, corpus=corpus)


def test_four_ranks_find_what_one_finds(mixed, corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert on_ranks(4, tmp_path, mixed_on_ranks, out, corpus) == [None] * 4
    together = read_json(out / "mix.json")
    assert list(together["mixes"]) == list(mixed["mixes"])
    for name, mix in mixed["mixes"].items():
        other = together["mixes"][name]
        assert other["shares"] == pytest.approx(mix["shares"], rel=1e-4)
        assert other["bits_per_byte"] == pytest.approx(mix["bits_per_byte"], rel=1e-4)
    for probe, utility in mixed["mixes"]["by utility"]["utility_by_probe"].items():
        other = together["mixes"]["by utility"]["utility_by_probe"][probe]
        assert other == pytest.approx(utility, rel=1e-3, abs=1e-6)


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
    assert calls == 1 + 4 + (2 + len(CONFIG.methods)) * len(DOMAINS)


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
