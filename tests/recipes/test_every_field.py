"""Every field of every config changes something: each is set to another value, and what the stage
leaves must differ.
"""

import builtins
import importlib
import io
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from every_field import BASE_CHANGES, BASES, FIELDS, FILTERED, FOLDER, SHAPE, TOGETHER
from rich.console import Console

import pocketlm.stages
import pocketlm.stages.export as export_stage
from pocketlm.corpus.dedup import MinHash
from pocketlm.corpus.filters import Thresholds
from pocketlm.corpus.join import Join
from pocketlm.corpus.sources import (
    KINDS,
    HubSource,
    LocalSource,
    NoteSource,
    ProblemSource,
    RecallSource,
    RowSource,
    Source,
)
from pocketlm.data.mixing.given import GivenMix
from pocketlm.data.mixing.influence import InfluenceMix
from pocketlm.data.mixing.methods import MixMethod
from pocketlm.data.mixing.problem import MixProblem
from pocketlm.data.mixing.swarm import SwarmMix, swarm_mix
from pocketlm.data.mixing.utility import UtilityMix
from pocketlm.data.probe_building import ask
from pocketlm.eval.agreement import Agreement
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model import transformer
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.lora import LoRA
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.report.goals import Goal
from pocketlm.runner.dry_run import DryRun
from pocketlm.serve.terminal import ChatConfig, chat
from pocketlm.stages.bench import BenchConfig, bench
from pocketlm.stages.chats import ChatsConfig, check_chats
from pocketlm.stages.claims_page import ClaimsPageConfig, claims_page
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.extend_context import ExtendConfig, extend_context
from pocketlm.stages.find_mix import MixConfig, find_mix
from pocketlm.stages.finetune import FinetuneConfig, finetune
from pocketlm.stages.formats import FormatsConfig, check_formats
from pocketlm.stages.importing import ImportConfig, import_model
from pocketlm.stages.judge import JudgeConfig, judge
from pocketlm.stages.leave_one_out import LeaveOneOutConfig, leave_one_out
from pocketlm.stages.measure_shapes import MeasureShapesConfig, measure_shapes
from pocketlm.stages.merge import MergeConfig, merge
from pocketlm.stages.prefer import PreferConfig, prefer
from pocketlm.stages.pretrain import PretrainConfig, pretrain
from pocketlm.stages.probes import ProbeConfig, build_probes
from pocketlm.stages.quantize import QuantizeConfig, quantize
from pocketlm.stages.reinforce import ReinforceConfig, reinforce
from pocketlm.stages.report import ReportConfig, report
from pocketlm.stages.select import SelectConfig, select
from pocketlm.stages.teach import TeachConfig, teach
from pocketlm.stages.vocabulary import VocabularyConfig, check_vocabulary
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig, StateWriter, saved_states
from pocketlm.train.distributed.fsdp import mesh_shape
from pocketlm.train.losses import Distillation
from pocketlm.train.optim import OptimConfig
from pocketlm.train.preference_loss import Preference

CASES = [(config, name) for config, names in FIELDS.items() for name in names]


# ---- what the stages are given ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts near every threshold, rows with three fields, code, two suites, a corpus, and models of
    random weights.
    """
    folder = tmp_path_factory.mktemp("fields")
    words = Random(1)
    plain = [
        "the",
        "of",
        "to",
        "and",
        "a",
        "in",
        "that",
        "it",
        "with",
        "is",
        "was",
        "for",
        "on",
        "are",
        "by",
        "this",
        "from",
        "water",
        "stone",
        "river",
        "light",
        "house",
        "tree",
    ]

    def story(length: int = 40) -> str:
        return " ".join(words.choice(plain) for _ in range(length)).capitalize() + "."

    def changed(text: str, every: int) -> str:
        return " ".join(
            word if n % every else word[::-1] for n, word in enumerate(text.split(), start=1)
        )

    stories = [story() for _ in range(40)]
    edges = [
        story(24),  # about 100 characters
        story(30) + " " + "вода камень река свет дом дерево " * 4,  # six letters of ten are Latin
        "Вода и камень, река и свет, дом и дерево. " * 3,
        f"{story(30)} {' '.join(str(n) for n in range(100, 120))}",  # half of it is letters
        "\n".join([story(8)] * 4 + [story(9) for _ in range(2)]),  # half of it is one line again
        " ".join(f"# {word}" if n % 4 == 0 else word for n, word in enumerate(story(60).split())),
        f"{story(12)} What does the tree in the light by the river say to the stone of the house? "
        f"{story(12)}",
    ]
    near = [
        changed(text, every) for text, every in zip(stories, [5, 8, 11, 14, 20] * 8, strict=True)
    ]
    texts = folder / "texts"
    texts.mkdir()
    for number, text in enumerate([*stories, *edges, *near]):
        (texts / f"{number:03}.txt").write_text(text)
    rows = [{"text": story(), "other": story(), "title": story(20)} for _ in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"prompt": f"Is {n} a prime?", "chosen": "It is.", "rejected": f"No, {n} is not."}
        for n in range(9)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "code").mkdir()
    for number in range(8):
        code = "\n\n".join(
            f'def f{number}_{n}(x):\n    """{story(20)}"""\n    return x + {n}\n' for n in range(3)
        )
        (folder / "code" / f"{number}.py").write_text(code)
    asked = "What does the tree in the light by the river say to the stone of the house?"
    wet = "Is water wet?"
    for name, gold, question in (("benchmarks", 0, wet), ("other-benchmarks", 1, asked)):
        (folder / name).mkdir()
        query = f"Question: {question}\nAnswer:"
        row = {"query": query, "choices": ["yes", "no"], "gold": gold}
        (folder / name / "arc_easy_test.jsonl").write_text(json.dumps(row) + "\n")
    program = {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "entry_point": "one",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    (folder / "benchmarks" / "HumanEval.jsonl").write_text(json.dumps(program) + "\n")
    exam = [{"prompt": asked, "answer": "no"}]
    exam += [{"prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(3)]
    for name, problems in (("exam", exam), ("other", exam[1:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    labels = [{"text": story(8 + 8 * (n % 5)), "label": n % 5} for n in range(30)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (folder / "tokenizer").mkdir()
    train_tokenizer([story(400)], 290).save(folder / "tokenizer")
    make_corpus(folder)
    make_models(folder)
    return folder


def make_corpus(folder: Path) -> None:
    sources = (
        ProblemSource(name="problems", domain="maths", families=("chain_sum",), count=90),
        NoteSource(name="notes", domain="knowledge", count=90, pairs_range=(1, 2)),
        RecallSource(name="notes-asked", domain="knowledge", count=40, seed=3, pairs_range=(1, 1)),
        LocalSource(name="texts", domain="knowledge", path=str(folder / "rows.jsonl")),
    )
    (folder / "corpus").mkdir()
    config = CurateConfig(
        name="corpus", sources=sources, vocab_size=320, validation_share=0.1, probe_share=0.1
    )
    curate(config, folder / "corpus")


def make_models(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "corpus" / "tokenizer")
    for name, seed in (("model", 1), ("sibling", 2), ("chat", 3)):
        tokenizer.chat_template = CHATML if name == "chat" else None
        (folder / name).mkdir()
        save_checkpoint(folder / name, Transformer(SHAPE, seed=seed), tokenizer)
    long = replace(SHAPE, max_position_embeddings=192)
    (folder / "long").mkdir()
    save_checkpoint(folder / "long", Transformer(long, seed=4), tokenizer)


# ---- what a config leaves: for each class a function of (config, folder of inputs, empty folder,
# monkeypatch) ----


def files_of(out: Path) -> dict[str, Any]:
    """All that a stage left and that does not tell the time. config.json repeats the config, so it
    proves nothing.
    """
    skipped = {"metrics.jsonl", "config.json", "throughput.json"}
    found = (file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in skipped)
    return {
        str(f.relative_to(out)): f.read_bytes()
        for f in found
        if not {"tensorboard", "resume"} & set(f.parts)
    }


def after_curate(config: CurateConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    import datasets

    def load(
        dataset: str, config: str | None, *, split: str, revision: str | None, streaming: bool
    ) -> Iterator[dict]:
        assert streaming
        asked = f"{dataset} {config} {split} {revision}"
        where = {"question": "-", "dataset": "them", "split": "train", "title": "A title"}
        return iter(
            [
                {**where, "index": str(n), "text": f"Row {n} of {asked}: {asked * 3}"}
                for n in range(20)
            ]
        )

    patch.setattr(datasets, "load_dataset", load)
    curate(placed(config, folder), out)
    throughput = json.loads((out / "throughput.json").read_text())
    return {**files_of(out), "executor": throughput["executor"]}


def placed(value: Any, folder: Path) -> Any:
    """A config with FOLDER replaced by the folder, however deep it stands."""
    if isinstance(value, str):
        return value.replace(FOLDER, str(folder))
    if isinstance(value, tuple):
        return tuple(placed(item, folder) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: placed(getattr(value, f.name), folder) for f in fields(value)}
        )
    return value


def with_source(
    source: Source, thresholds: Thresholds | None = None, minhash: MinHash | None = None
) -> CurateConfig:
    parts = {"thresholds": thresholds or Thresholds(), "minhash": minhash or MinHash()}
    return CurateConfig(name="corpus", sources=(source,), vocab_size=259, ngram=5, **parts)


def joined_by(join: Join) -> HubSource:
    """Rows whose questions stand in that set, or else in one of titles."""
    titles = replace(BASES[Join], fields=("title", "text"))
    fields = {"prompt_field": "question", "response_field": "text"}
    return replace(BASES[HubSource], **fields, joins=(join, titles))


def after_training(stage: Callable[..., Path], **inputs: str) -> Callable[..., Any]:
    def run(config: Any, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
        """What the stage left, the micro-batches of each step, and the steps after which it
        saved.
        """
        seen: list[Any] = []
        step, save = loop.train_step, StateWriter.write

        def watched_step(model: Any, optimizers: Any, micro_batches: list, *rest: Any) -> Any:
            seen.append([tuple(batch.input_ids.shape) for batch in micro_batches])
            return step(model, optimizers, micro_batches, *rest)

        def watched_save(self: StateWriter, model: Any, optimizers: Any, done: int) -> None:
            seen.append(f"saved after {done}")
            save(self, model, optimizers, done)

        patch.setattr(loop, "train_step", watched_step)
        patch.setattr(StateWriter, "write", watched_save)
        stage(
            config,
            out,
            corpus=folder / "corpus",
            **{name: folder / place for name, place in inputs.items()},
        )
        return files_of(out), seen

    return run


def after_prefer(config: PreferConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    def stage(config: PreferConfig, out: Path, *, corpus: Path, model: Path) -> Path:
        return prefer(config, out, model=model, pairs=folder / "pairs.jsonl")

    return after_training(stage, model="model")(config, folder, out, patch)


def after_reinforce(
    config: ReinforceConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch
) -> Any:
    def stage(config: ReinforceConfig, out: Path, *, corpus: Path, model: Path) -> Path:
        return reinforce(config, out, model=model)

    try:
        return after_training(stage, model="model")(config, folder, out, patch)
    except ValueError as refused:  # a row that has no room for the prompt
        return str(refused)


def after_teach(config: TeachConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    """What was written, and the sizes in which the teacher read."""
    seen: list[Any] = []
    hidden = Transformer.hidden

    def watched(
        self: Transformer, input_ids: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        seen.append(tuple(input_ids.shape))
        return hidden(self, input_ids, *rest, **options)

    patch.setattr(Transformer, "hidden", watched)
    teach(config, out, corpus=folder / "corpus", teacher=folder / "chat")
    skipped = ("begun.json", "teacher.json")  # which repeat the config
    return {name: raw for name, raw in files_of(out).items() if name not in skipped}, seen


def after_optim(config: OptimConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    """What the stage left, whether blocks were compiled, and which were recomputed."""
    seen: list[Any] = []
    twice = transformer.checkpoint

    def not_compiled() -> Any:
        seen.append("compiled")  # and left as it is: the compiler takes its time
        return transformer.run_block

    def watched_twice(block: transformer.Block, *rest: Any, **options: Any) -> Any:
        seen.append("twice")
        return twice(block, *rest, **options)

    patch.setattr(transformer, "compiled_block", not_compiled)
    patch.setattr(transformer, "checkpoint", watched_twice)
    try:
        pretrain(replace(BASES[PretrainConfig], optim=config), out, corpus=folder / "corpus")
    except FloatingPointError:
        assert config.on_nonfinite == "stop"
    return files_of(out), seen, mesh_shape(config.shard_over, world_size=4, local_world_size=2)


def after_probes(config: ProbeConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    """What was written and the sizes of batches, or why it is refused."""
    seen: list[int] = []
    compute = ask.next_logits

    def watched(model: Any, rows: Any) -> Any:
        seen.append(len(rows))
        return compute(model, rows)

    patch.setattr(ask, "next_logits", watched)
    try:
        build_probes(placed(config, folder), out, corpus=folder / "corpus", asker=folder / "model")
    except ValueError as refused:
        return str(refused)
    return files_of(out), seen


def after_method(config: MixMethod, *rest: Any) -> Any:
    return after_training(find_mix)(replace(BASES[MixConfig], methods={"found": config}), *rest)


def after_swarm(config: SwarmMix, *rest: Any) -> Any:
    """The mixes that proxies are trained on, whose losses are a known law's, and what is found."""
    trained: dict[str, Any] = {}

    def losses(mixes: Any) -> dict[str, dict[str, float]]:
        trained.update(mixes)
        return {
            name: {
                "maths": 1 + (shares["problems"] - 0.7) ** 2,
                "knowledge": 2 - 0.5 * shares["notes"],
            }
            for name, shares in mixes.items()
        }

    problem = MixProblem(
        tokens={"problems": 3000, "notes": 2000, "texts": 5000},
        capabilities={},
        budget_tokens=8000,
        max_epochs=4.0,
        where="mix.methods.swarm",
        simulate=lambda *run, **how: [],
        losses=losses,
    )
    return swarm_mix(config, problem), trained


def after_influence(
    config: InfluenceMix, folder: Path, out: Path, patch: pytest.MonkeyPatch
) -> Any:
    """With a source that harms, so that what becomes of it is seen."""
    method = importlib.import_module("pocketlm.data.mixing.influence")
    density = method.density
    patch.setattr(method, "density", lambda *rows: {**density(*rows), "notes": -1.0})
    try:
        return after_method(config, folder, out, patch)
    except ValueError as refused:
        return str(refused)


def after_save(config: SaveConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    """The states that are there at the end."""
    optim = replace(BASES[OptimConfig], num_steps=8)
    pretrain(
        replace(BASES[PretrainConfig], optim=optim, save=config), out, corpus=folder / "corpus"
    )
    return sorted(state.name for state in saved_states(out))


def after_model(config: ModelConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    model = Transformer(config)
    limit = LanguageModel(model, Tokenizer.load(folder / "corpus" / "tokenizer")).max_length
    with torch.no_grad():
        logits = model(torch.arange(24)[None] * 7)
    return (
        limit,
        logits.tolist(),
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
    )


def after_evaluate(
    config: EvaluateConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch
) -> Any:
    """What was written, the needle prompts, the sizes of batches, how the sandbox was opened, and
    what speed was measured with.
    """
    stage = importlib.import_module("pocketlm.stages.evaluate")
    seen: list[Any] = []
    find, generate = stage.find_needles, LanguageModel.generate
    suites = importlib.import_module("pocketlm.eval.suites.loaded")
    open_sandbox = suites.open_sandbox

    def watched_open(**options: Any) -> Any:
        seen.append(options)
        return open_sandbox(**options)

    def watched_find(model: Any, trials: Any, *limit: int) -> Any:
        seen.append(trials)
        return find(model, trials, *limit)

    def few_facts(tokenizer: Any, tokens: int, trials: int, *rest: Any) -> Any:
        # the syllables of facts are no tokens of this small vocabulary
        seen.append(rest[-1])
        return [(tokenizer.encode("Bo ri="), "47")] * trials

    def watched_generate(self: LanguageModel, prompts: Any, **options: Any) -> Any:
        seen.append(len(prompts))
        return generate(self, prompts, **options)

    def speed(model: Any, *tokens: int, repeats: int) -> dict[str, float]:
        seen.append((*tokens, type(model)))
        return {"decode_tokens_per_second": 1.0}

    patch.setattr(stage, "find_needles", watched_find)
    patch.setattr(suites, "open_sandbox", watched_open)
    patch.setattr(stage, "fact_trials", few_facts)
    patch.setattr(LanguageModel, "generate", watched_generate)
    patch.setattr(stage, "measure_speed", speed)
    try:
        evaluate(placed(config, folder), out, models=[folder / "long"], corpus=folder / "corpus")
    except ValueError as refused:
        if not config.needle_labels:
            raise
        return str(refused)
    return files_of(out), seen


def after_bench(config: BenchConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    """What speed was measured with, and on how many threads; the figures themselves tell the
    time.
    """
    stage = importlib.import_module("pocketlm.stages.bench")
    seen: list[Any] = []

    def speed(model: Any, *tokens: int, report: Any) -> dict[str, float]:
        seen.append((*tokens, torch.get_num_threads(), type(model)))
        return {"decode_tokens_per_second": 1.0}

    patch.setattr(stage, "measure_speed", speed)
    patch.setattr(stage, "read_bandwidth", lambda: 1e9)
    patch.setattr(stage, "in_own_process", lambda report, *rest: stage.measure(*rest, report))
    try:
        bench(config, out, models=[folder / "model"])
    finally:
        torch.set_num_threads(1)
    return seen


def after_measure_shapes(
    config: MeasureShapesConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch
) -> Any:
    """What was measured, in place of how long it took."""
    stage = importlib.import_module("pocketlm.stages.measure_shapes")
    seen: list[Any] = []

    def speed(chosen: MeasureShapesConfig, shape: ModelConfig, *rest: Any) -> dict[str, float]:
        how = chosen.runtime, chosen.scheme, chosen.context, chosen.new_tokens, chosen.threads
        seen.append((how, shape))
        slower = 1 + 0.1 * (len(seen) % 5)
        return {"seconds": slower * shape.hidden_size * shape.num_hidden_layers, "pace": 1.0}

    patch.setattr(stage, "_speed_of", speed)
    try:
        measure_shapes(config, out, model=folder / "model")
    except ValueError as refused:
        return str(refused)
    return files_of(out), seen


def after_export(config: ExportConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    # lowering takes ten seconds
    def write(model: Any, tokenizer: Any, path: Path, **options: Any) -> Path:
        path.write_text(repr(options))
        beside = path.with_name(f"{path.stem}.tokenizer")
        beside.mkdir()
        tokenizer.save(beside)
        return path

    check = export_stage.check_file

    def check_gguf(file: Path, *rest: Any, **options: Any) -> Agreement:
        if file.suffix == ".gguf":
            return check(file, *rest, **options)
        return Agreement(top_token=1.0, kl=0.0, greedy=1.0, tokens=1)

    patch.setattr("pocketlm.export.pte.write_pte", write)
    patch.setattr(export_stage, "check_file", check_gguf)
    try:
        return files_of(export(config, out, model=folder / "model"))
    except ValueError as refused:
        # which holds no local layers
        assert config.min_agreement == 1.0 or config.layout == "llama4_text"
        return str(refused)


def after_import(config: ImportConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    import huggingface_hub

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        return str(folder / ("sibling" if revision == "v2" else name.removeprefix("them/")))

    patch.setattr(huggingface_hub, "snapshot_download", download)
    try:
        return files_of(import_model(config, out))
    except ValueError as refused:
        assert config.base  # which is for adapters
        return str(refused)


def after_chat(config: ChatConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    lines = iter(["What is 1 plus 1?", "And 2 plus 2?"])

    def ask(prompt: object = "") -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    patch.setattr(builtins, "input", ask)
    return chat(LanguageModel.open(folder / "chat"), config, Console(file=io.StringIO()))


def after_report(config: ReportConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    finished = folder / "finished"
    stages = [finished / name for name in ("corpus", "mix", "base", "merged", "chat", "int4")]
    return files_of(report(config, out, stages=stages, evaluation=finished / "evaluation"))


def after_judge(config: JudgeConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch) -> Any:
    try:
        return files_of(judge(config, out, evaluations=[folder / "finished" / "evaluation"] * 2))
    except ValueError as refused:
        assert config.numbered  # whose labels have no numbers here
        return str(refused)


def after_claims_page(
    config: ClaimsPageConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch
) -> Any:
    judged = out / "judged"
    judged.mkdir()
    judge(BASES[JudgeConfig], judged, evaluations=[folder / "finished" / "evaluation"] * 2)
    return files_of(claims_page(config, out, claims=[judged]))


def after_vocabulary(
    config: VocabularyConfig, folder: Path, out: Path, patch: pytest.MonkeyPatch
) -> Any:
    """What it writes, or why it refuses."""
    try:
        return files_of(check_vocabulary(placed(config, folder), out, teacher=folder / "model"))
    except ValueError as error:
        return str(error)


AFTER: dict[type, Callable[..., Any]] = {
    OptimConfig: after_optim,
    SaveConfig: after_save,
    ModelConfig: after_model,
    **dict.fromkeys(KINDS.values(), lambda config, *rest: after_curate(with_source(config), *rest)),
    Join: lambda config, *rest: after_curate(with_source(joined_by(config)), *rest),
    Goal: lambda config, *rest: after_report(replace(BASES[ReportConfig], goals=(config,)), *rest),
    MinHash: lambda config, *rest: after_curate(
        with_source(BASES[LocalSource], minhash=config), *rest
    ),
    ChatConfig: after_chat,
    Sampling: lambda config, *rest: after_chat(replace(BASES[ChatConfig], sampling=config), *rest),
    CurateConfig: after_curate,
    MixConfig: after_training(find_mix),
    LeaveOneOutConfig: after_training(leave_one_out),
    ProbeConfig: after_probes,
    UtilityMix: after_method,
    SwarmMix: after_swarm,
    InfluenceMix: after_influence,
    GivenMix: after_method,
    PretrainConfig: after_training(pretrain, teacher="sibling"),
    SelectConfig: lambda config, folder, out, patch: files_of(
        select(config, out, corpus=folder / "corpus", model=folder / "model")
    ),
    ExtendConfig: after_training(extend_context, model="model", teacher="long"),
    MergeConfig: lambda config, folder, out, patch: files_of(
        merge(config, out, corpus=folder / "corpus", models=[folder / "model", folder / "sibling"])
    ),
    LoRA: lambda config, *rest: after_training(finetune, model="model")(
        replace(BASES[FinetuneConfig], lora=config), *rest
    ),
    PreferConfig: after_prefer,
    ReinforceConfig: after_reinforce,
    Preference: lambda config, *rest: after_prefer(
        replace(BASES[PreferConfig], preference=config), *rest
    ),
    FinetuneConfig: after_training(finetune, model="model", teacher="sibling"),
    QuantizeConfig: after_training(quantize, model="chat"),
    Distillation: lambda config, *rest: after_training(pretrain, teacher="sibling")(
        replace(BASES[PretrainConfig], distillation=config), *rest
    ),
    TeachConfig: after_teach,
    ExportConfig: after_export,
    FormatsConfig: lambda config, folder, out, patch: files_of(
        check_formats(config, out, model=folder / "model")
    ),
    ChatsConfig: lambda config, folder, out, patch: files_of(
        check_chats(config, out, corpus=folder / "corpus", model=folder / "model")
    ),
    VocabularyConfig: after_vocabulary,
    ImportConfig: after_import,
    RopeScaling: lambda config, *rest: after_model(replace(SHAPE, rope_scaling=config), *rest),
    BenchConfig: after_bench,
    MeasureShapesConfig: after_measure_shapes,
    EvaluateConfig: after_evaluate,
    ReportConfig: after_report,
    JudgeConfig: after_judge,
    ClaimsPageConfig: after_claims_page,
}
STAGES = {
    **{
        CurateConfig: curate,
        MixConfig: find_mix,
        LeaveOneOutConfig: leave_one_out,
        ProbeConfig: build_probes,
        PretrainConfig: pretrain,
        SelectConfig: select,
        MergeConfig: merge,
    },
    **{
        ExtendConfig: extend_context,
        FinetuneConfig: finetune,
        PreferConfig: prefer,
        ReinforceConfig: reinforce,
        QuantizeConfig: quantize,
        ExportConfig: export,
    },
    **{
        EvaluateConfig: evaluate,
        ReportConfig: report,
        ImportConfig: import_model,
        BenchConfig: bench,
        MeasureShapesConfig: measure_shapes,
    },
    **{TeachConfig: teach, FormatsConfig: check_formats, ChatsConfig: check_chats},
    VocabularyConfig: check_vocabulary,
    **{JudgeConfig: judge, ClaimsPageConfig: claims_page},
}


class Seen:
    """What each config leaves, computed once."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out, self.found = folder, out, {}

    def __call__(self, config: Any, name: str) -> Any:
        kind = type(config)
        key = repr((config, FILTERED.get(name) if kind is Thresholds else None))
        if key not in self.found:
            out = self.out / str(len(list(self.out.iterdir())))
            out.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                if kind is Thresholds:
                    source = replace(
                        BASES[LocalSource], filters=(FILTERED[name],), near_dedup=False
                    )
                    self.found[key] = after_curate(
                        with_source(source, thresholds=config), self.folder, out, patch
                    )
                else:
                    self.found[key] = AFTER[kind](config, self.folder, out, patch)
        return self.found[key]


@pytest.fixture(scope="module")
def left_by(folder: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    (folder / "finished").symlink_to(finished)
    torch.set_num_threads(1)
    return Seen(folder, tmp_path_factory.mktemp("left"))


def own_fields(source: type) -> set[str]:
    """The fields that a kind of source adds to those that all have."""
    names = {field.name for field in fields(source)}
    return names - {field.name for field in fields(RowSource)}


def test_every_field_of_every_config_is_in_the_table() -> None:
    for config, table in FIELDS.items():
        names = {field.name for field in fields(config)}
        if issubclass(config, Source) and config is not LocalSource:
            # what all sources have is shown by LocalSource
            assert own_fields(config) <= table.keys() <= names, config.__name__
        else:
            assert list(table.keys() ^ names) == [], config.__name__
    assert FIELDS.keys() >= set(KINDS.values())
    modules = [
        importlib.import_module(f"pocketlm.stages.{found.name}")
        for found in pkgutil.iter_modules(pocketlm.stages.__path__)
    ]
    configs = {
        value
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("Config") and is_dataclass(value)
    }
    assert configs <= FIELDS.keys()
    assert set(FILTERED) == set(FIELDS[Thresholds])


@pytest.mark.parametrize("config", [config for config in FIELDS if config is not Thresholds])
def test_the_same_config_leaves_the_same(config: type, left_by: Seen, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        again = AFTER[config](BASES[config], left_by.folder, tmp_path, patch)
    assert again == left_by(BASES[config], "")


@pytest.mark.parametrize(
    ("config", "name"), [case for case in CASES if case[1] != "name" or issubclass(case[0], Source)]
)
def test_every_field_changes_what_is_left(config: type, name: str, left_by: Seen) -> None:
    base = replace(BASES[config], **BASE_CHANGES.get((config, name), {}))
    other = replace(base, **{name: FIELDS[config][name]}, **TOGETHER.get((config, name), {}))
    compared = next(field for field in fields(config) if field.name == name).compare
    assert (other != base) == compared
    assert left_by(other, name) != left_by(base, name)


@pytest.mark.parametrize("config", STAGES)
def test_the_name_of_a_config_is_its_folder(config: type, tmp_path: Path) -> None:
    for name in (BASES[config].name, FIELDS[config]["name"]):
        dry = DryRun(tmp_path, missing_ok=True)
        assert dry(STAGES[config], replace(BASES[config], name=name)) == tmp_path / name
