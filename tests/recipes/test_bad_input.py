"""What people get wrong: one message that names the file and the line or field, status 2, and
nothing lost.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import pytest
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer

TINY = Path(__file__).with_name("tiny.py")
LONGEST_MESSAGE = 25  # lines: one screen


@pytest.fixture
def texts(documents: Path, tmp_path: Path) -> Path:
    """The documents of tiny.py in a folder that may be spoilt."""
    return shutil.copytree(documents, tmp_path / "documents")


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """A run of which everything up to "base" is done."""
    out = tmp_path / "run"
    for name in ("corpus", "mix", "teacher-short", "teacher", "phase1", "base"):
        shutil.copytree(finished / name, out / name)
    return out


def pocketlm(*words: str | Path) -> tuple[int, str]:
    """Exit status, and everything that was shown, of a command in this process."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def assert_plain(shown: str, *words: str) -> None:
    """One message of at most one screen that has all these words in it."""
    message = shown[shown.index("error: ") :]
    assert "Traceback" not in shown and len(message.splitlines()) <= LONGEST_MESSAGE
    assert [word for word in words if word not in message] == [], message


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its lock and the log of errors."""
    files = (
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (".lock", "error.log")
    )
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# ---- sources ----


def spoil_line(texts: Path, line: bytes) -> None:
    rows = (texts / "texts" / "rows.jsonl").read_bytes().splitlines()
    (texts / "texts" / "rows.jsonl").write_bytes(b"\n".join([*rows[:6], line, *rows[6:]]))


def empty_source(texts: Path) -> None:
    shutil.rmtree(texts / "texts")
    (texts / "texts").mkdir()


def truncated_parquet(texts: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = texts / "texts" / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a row of some words"] * 1000}), file)
    os.truncate(file, file.stat().st_size - 100)


SPOILT_SOURCES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (
        lambda texts: shutil.rmtree(texts / "texts"),
        ("stage corpus", "documents/texts does not exist"),
    ),
    "empty": (empty_source, ("source 'texts'", "texts", "is empty: nothing was read")),
    "malformed JSON": (
        lambda texts: spoil_line(texts, b'{"text": "a'),
        ("rows.jsonl:7:10:", "not JSON"),
    ),
    "not UTF-8": (
        lambda texts: spoil_line(texts, b'{"text": "caf\xe9"}'),
        ("rows.jsonl:7", "not UTF-8 at byte 13", "convert"),
    ),
    "a row without its text": (
        lambda texts: spoil_line(texts, b'{"body": "words"}'),
        ("rows.jsonl:7", 'no field "text"', "the row has body", "set text_field"),
    ),
    "a row that is no object": (
        lambda texts: spoil_line(texts, b"[1, 2]"),
        ("rows.jsonl:7", "must be an object"),
    ),
    "a truncated parquet": (
        truncated_parquet,
        ("rows.parquet", "not a whole parquet file", "fetch it again"),
    ),
}


@pytest.mark.parametrize("fault", SPOILT_SOURCES)
def test_a_source_that_cannot_be_read_is_named_and_the_others_are_kept(
    texts: Path, tmp_path: Path, fault: str
) -> None:
    good = shutil.copytree(texts, tmp_path / "good")
    spoil, words = SPOILT_SOURCES[fault]
    spoil(texts)
    out = tmp_path / "run"
    status, shown = pocketlm("run", TINY, texts, "--short", "--out", out)
    assert status == 2
    assert_plain(shown, *words)
    parts = out / "corpus" / "resume" / "parts"
    read = {folder.name for folder in parts.glob("[!.]*")}
    # at least the generated sources before it
    assert not read if fault == "missing" else {"00000", "00001", "00002"} <= read
    kept = contents(parts)
    if fault == "missing":  # the folder is an input: without it nothing was begun
        return
    shutil.rmtree(texts)
    good.rename(texts)
    status, shown = pocketlm("run", TINY, texts, "--short", "--out", out, "--only", "corpus")
    assert status == 2  # a file the stage reads has changed
    assert "another configuration" in shown and contents(parts) == kept


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["select.seq_length=9"], ("--set select.seq_length=9", "did you mean 'seq_len'?")),
        (["select.seq_len=many"], ("select.seq_len=many", "'many' is not a whole number")),
        (["selects.seed=9"], ("selects", "did you mean 'select'?")),
        (
            ["mid.seq_len=4096"],
            ("mid.seq_len 4096 exceeds max_position_embeddings 64", "extend_context"),
        ),
        (["mid.micro_batch_size=3"], ("rows_per_step 4", "micro_batch_size 3")),
        (["mid.shares={}"], ("mid.shares", "sum to 0")),
        (
            ['mid.shares={"problems": 1.5, "notes": -0.5}'],
            ("mid.shares", "must not be negative: notes -0.5"),
        ),
        (['mid.shares={"problems": 0.5, "notes": 0.4}'], ("mid.shares", "sum to 0.9000, not to 1")),
        (
            ['mid.shares={"problem": 1.0}'],
            ("mid.shares", "unknown sources problem", "known:", "problems"),
        ),
        (["mid.optim.lr=-1"], ("lr", "-1", "must be positive")),
        (["mid.optim.warmup_steps=4"], ("warmup_steps 4 must be below num_steps 4",)),
        (["select.budget_tokens=100000000"], ("100000000 tokens ask for more than 4.0 passes",)),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    documents: Path, begun: Path, settings: list[str], words: tuple[str, ...]
) -> None:
    pocketlm("run", TINY, documents, "--out", begun, "--only", "select")
    stage = settings[0].partition(".")[0]
    if stage == "select":
        shutil.rmtree(begun / "select")
    before = contents(begun)
    options = [word for setting in settings for word in ("--set", setting)]
    status, shown = pocketlm(
        "run",
        TINY,
        documents,
        "--out",
        begun,
        "--only",
        stage.replace("selects", "select"),
        *options,
    )
    assert status == 2
    assert_plain(shown, *words)
    after = contents(begun)
    assert {name: after[name] for name in before} == before


# ---- checkpoints and exported files ----


def test_truncated_weights_are_named_and_later_stages_do_not_begin(
    documents: Path, begun: Path
) -> None:
    weights = begun / "base" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    before = contents(begun)
    status, shown = pocketlm("run", TINY, documents, "--out", begun)
    assert status == 2
    assert_plain(shown, "stage base finished", "model.safetensors has", "delete")
    assert contents(begun) == before
    status, shown = pocketlm("eval", begun / "base", "--suite", documents / "exam.jsonl")
    assert status == 2
    assert_plain(shown, str(weights), "damaged")


def test_a_tokenizer_that_does_not_fit_its_checkpoint_is_named(
    finished: Path, documents: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(finished / "base", tmp_path / "base")
    train_tokenizer(
        [" ".join(a + b for a in ascii_lowercase for b in ascii_lowercase)] * 3, 700
    ).save(model)
    for command in (
        ["chat"],
        ["eval", "--suite", documents / "exam.jsonl"],
        ["export", "--to", "gguf"],
    ):
        status, shown = pocketlm(command[0], model, *command[1:])
        assert status == 2
        assert_plain(shown, str(model), "the tokenizer has 700 tokens", "512")


BROUGHT = """
from tiny import PHASE
from pocketlm.stages.pretrain import pretrain


def recipe(run, corpus, model):
    run(pretrain, PHASE, corpus=corpus, model=model)
"""


def test_a_checkpoint_with_another_tokenizer_than_the_corpus_is_named(
    finished: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(finished / "base", tmp_path / "brought")
    (model / "stage.json").unlink()
    train_tokenizer(
        [" ".join(a + b for a in ascii_lowercase for b in ascii_lowercase)] * 3, 512
    ).save(model)
    (tmp_path / "brought.py").write_text(BROUGHT)
    status, shown = pocketlm(
        "run", tmp_path / "brought.py", finished / "corpus", model, "--out", tmp_path / "run"
    )
    assert status == 2
    assert_plain(
        shown, str(model), "is not the one", str(finished / "corpus"), "curate with tokenizer="
    )


class Payload:
    """What a hostile pickle does when it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_in_place_of_weights_is_refused_and_not_opened(
    finished: Path, documents: Path, tmp_path: Path, name: str
) -> None:
    model = shutil.copytree(finished / "base", tmp_path / "base")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    for command in (
        ["chat"],
        ["eval", "--suite", documents / "exam.jsonl"],
        ["export", "--to", "gguf"],
    ):
        status, shown = pocketlm(command[0], model, *command[1:])
        assert status == 2 and not (tmp_path / "executed").exists()
        assert_plain(shown, str(model), "model.safetensors")
    with open(model / name, "rb") as file:
        pickle.load(file)  # noqa: S301 - it is our own, and shows that the payload works
    assert (tmp_path / "executed").exists()


def test_a_pickle_in_place_of_shards_is_refused_and_not_opened(
    documents: Path, begun: Path, tmp_path: Path
) -> None:
    shard = begun / "corpus" / "shards" / "problems" / "train.tokens.npy"
    content = pickle.dumps(Payload(tmp_path / "executed"))
    shard.write_bytes(content + b"\0" * (shard.stat().st_size - len(content)))
    shutil.rmtree(begun / "base")
    status, shown = pocketlm("run", TINY, documents, "--out", begun, "--only", "base")
    assert status == 2 and not (tmp_path / "executed").exists()
    assert_plain(shown, str(shard), "not a whole .npy file")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("command", [["chat"], ["eval", "--suite", "exam.jsonl"]])
def test_a_truncated_gguf_is_named(
    finished: Path, documents: Path, tmp_path: Path, command: list[str], share: float
) -> None:
    cut = tmp_path / "cut.gguf"
    content = (finished / "files" / "model.gguf").read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    status, shown = pocketlm(
        command[0], cut, *(word.replace("exam", str(documents / "exam")) for word in command[1:])
    )
    assert status == 2
    assert_plain(shown, str(cut))


@pytest.fixture(scope="module")
def pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole .pte of the smallest network there is."""
    pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
    import tiny

    from pocketlm.export.pte import write_pte

    tokenizer = train_tokenizer(["a few words"], 262)
    shape = replace(
        tiny.SHAPE,
        vocab_size=262,
        num_hidden_layers=1,
        layer_types=(),
        hidden_size=32,
        intermediate_size=32,
    )
    out = tmp_path_factory.mktemp("pte") / "model.pte"
    return write_pte(Transformer(shape).eval(), tokenizer, out, context_length=32)


@pytest.mark.parametrize("command", [["chat"], ["eval", "--suite", "exam.jsonl"]])
def test_a_truncated_pte_is_named(
    pte: Path, documents: Path, tmp_path: Path, command: list[str]
) -> None:
    content = pte.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        cut = tmp_path / "cut.pte"
        cut.write_bytes(content[: int(len(content) * share)])
        words = [word.replace("exam", str(documents / "exam")) for word in command[1:]]
        status, shown = pocketlm(command[0], cut, *words)
        assert status == 2
        assert_plain(shown, str(cut))


def test_a_prompt_longer_than_a_pte_was_exported_for_is_told(pte: Path, documents: Path) -> None:
    status, shown = pocketlm("eval", pte, "--suite", documents / "exam.jsonl")
    assert status == 2
    assert_plain(shown, "exam", "prompt tokens leave no room", "the model's 32")


@pytest.mark.parametrize("length", ["0", "-5", "10", "9999999"])
def test_a_context_length_that_no_pte_can_have_is_told_before_the_work(
    finished: Path, tmp_path: Path, length: str
) -> None:
    out = tmp_path / "out"
    status, shown = pocketlm(
        "export", finished / "base", "--to", "pte", "--context-length", length, "--out", out
    )
    assert status == 2 and not list(tmp_path.rglob("*.pte"))
    assert_plain(shown, "context_length")


def test_a_config_that_is_no_checkpoints_is_named(
    finished: Path, documents: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(finished / "base", tmp_path / "base")
    config = json.loads((model / "config.json").read_text())
    for change, word in (
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "missing model.layers.3"),
        ({"hidden_size": 32}, "the config asks for"),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        status, shown = pocketlm("eval", model, "--suite", documents / "exam.jsonl")
        assert status == 2
        assert_plain(shown, str(model), word)
    (model / "config.json").write_text('{"model_type": ')
    status, shown = pocketlm("eval", model, "--suite", documents / "exam.jsonl")
    assert status == 2
    assert_plain(shown, "config.json:1: not JSON")


# ---- the machine ----


def on_a_small_disk(
    out: Path, kilobytes: int, command: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A command that runs while `out` is a disk of its own of this size; what it left is copied to
    `out`-left.
    """
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, of Linux")
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs {out} || exit 77; cp -a {out}-before/. {out}; "
        f"{{ "
    )
    script += f'"$@"; }}; status=$?; cp -a {out} {out}-left; exit $status'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode == 77 or "unshare" in done.stderr[:40]:
        pytest.skip(f"no disk of our own can be mounted here: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize("room", [20, 900])
def test_a_full_disk_is_told_and_what_was_finished_stays(
    documents: Path, begun: Path, environment: dict[str, str], room: int
) -> None:
    shutil.rmtree(begun / "base")
    before = contents(begun)
    begun.rename(begun.with_name("run-before"))
    begun.mkdir()
    size = sum((len(content) + 4095) // 4096 * 4 for content in before.values()) + room
    command = [
        sys.executable,
        "-m",
        "pocketlm.cli",
        "run",
        str(TINY),
        str(documents),
        "--out",
        str(begun),
    ]
    done = on_a_small_disk(begun, size, command, environment)
    assert done.returncode == 2, done.stderr
    assert_plain(
        done.stderr,
        "the disk is full",
        "MB are free at",
        "make room, then run the same command again",
    )
    left = begun.with_name("run-left")
    after = contents(left)
    assert {name: after[name] for name in before} == before
    status, shown = pocketlm("run", TINY, documents, "--out", left, "--only", "base")
    assert status == 0, shown  # with room again, it goes on


def test_a_full_disk_while_documents_are_written_is_told(
    documents: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (tmp_path / "run-before").mkdir()
    command = [
        sys.executable,
        "-m",
        "pocketlm.cli",
        "run",
        str(TINY),
        str(documents),
        "--short",
        "--out",
        str(out),
    ]
    for kilobytes in (60, 200):
        done = on_a_small_disk(out, kilobytes, command, environment)
        assert done.returncode == 2, done.stderr
        assert_plain(done.stderr, "the disk is full", "MB are free at")
        shutil.rmtree(tmp_path / "run-left")


def test_a_folder_that_may_not_be_written_to_is_named(documents: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    status, shown = pocketlm("run", TINY, documents, "--out", tmp_path / "run")
    assert status == 2
    assert_plain(shown, str(tmp_path / "run"))


def test_ctrl_c_is_no_error(
    finished: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketlm.stages.evaluate.run_suite", interrupted)
    status, shown = pocketlm("eval", finished / "base", "--suite", documents / "exam.jsonl")
    assert status == 130 and shown.strip().endswith("interrupted") and "Traceback" not in shown


def test_two_runs_of_one_folder_are_kept_apart(documents: Path, begun: Path) -> None:
    from pocketlm.runner.run import Run

    with Run(begun):
        status, shown = pocketlm("run", TINY, documents, "--out", begun)
    assert status == 2
    assert_plain(shown, str(begun), f"is in use by process {os.getpid()}")


def test_weights_that_are_not_numbers_stop_training_before_they_spread(
    documents: Path, begun: Path
) -> None:
    from pocketlm.model.checkpoint import load_checkpoint

    shutil.rmtree(begun / "base")
    model, tokenizer = load_checkpoint(begun / "phase1")
    model.model.norm.weight.data.fill_(float("nan"))
    save_checkpoint(begun / "phase1", model, tokenizer)
    status, shown = pocketlm("run", TINY, documents, "--out", begun, "--only", "base")
    assert status == 2
    assert_plain(shown, "step 0: loss nan", "the weights are untouched", "in stage base")
