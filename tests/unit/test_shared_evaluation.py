"""Several ranks share the documents of an evaluation, and all is as one process gives it."""

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shapes import small

from pocketlm.eval import harness
from pocketlm.eval.answers_file import SharedAnswers, part_of
from pocketlm.eval.harness import Share, run_suite
from pocketlm.eval.suites.protocols import POCKET
from pocketlm.eval.suites.suite import Problem
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.evaluate import EvaluateConfig, evaluate
from tests.unit.rank_processes import on_ranks

PROBLEMS = tuple(
    Problem(id=f"{family}-{n}", family=family, prompt=f"{family} {n}?", answer=str(n % 3))
    for family in ("sums", "words")
    for n in range(13)
)
SUITE = replace(POCKET, name="six", max_new_tokens=8)
DRAWN = replace(SUITE, samples=2, sampling=replace(SUITE.sampling, temperature=1.0, seed=5))


def tokenizer() -> Tokenizer:
    return train_tokenizer([f"Question: {p.prompt}\nAnswer: {p.answer}" for p in PROBLEMS], 270)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    words = tokenizer()
    return LanguageModel(Transformer(small(vocab_size=words.vocab_size)).eval(), words)


def shared(
    model: LanguageModel, suite: Any, path: Path, count: int, died: int | None = None
) -> list[Any]:
    """The rows that each of `count` threads gets, as ranks with the model; one may not come."""
    meeting, rows = threading.Barrier(count), [None] * count

    def rank(number: int) -> None:
        def meet() -> None:
            if died is not None:
                raise ConnectionError("another one ended")
            meeting.wait(60)

        try:
            given = Share(number, count, meet)
            rows[number] = run_suite(model, suite, PROBLEMS, batch_size=4, path=path, share=given)  # type: ignore[assignment]
        except ConnectionError:
            pass

    threads = [threading.Thread(target=rank, args=(n,)) for n in range(count) if n != died]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


@pytest.mark.parametrize("suite", [SUITE, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_all_ranks_get_the_rows_that_one_process_gives(
    suite: Any, count: int, model: LanguageModel, tmp_path: Path
) -> None:
    alone, path = tmp_path / "alone.jsonl", tmp_path / "m.six.jsonl"
    expected = run_suite(model, suite, PROBLEMS, batch_size=4, path=alone)
    assert shared(model, suite, path, count) == [expected] * count
    assert path.read_bytes() == alone.read_bytes()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["alone.jsonl", "m.six.jsonl"]


def test_what_a_rank_answered_before_another_died_is_not_answered_again(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    written = harness._written_row

    def counting(suite: Any, request: Any, samples: Any) -> Any:
        asked[request.key] += 1
        return written(suite, request, samples)

    monkeypatch.setattr(harness, "_written_row", counting)
    path = tmp_path / "m.six.jsonl"
    shared(model, SUITE, path, 3, died=1)
    kept = set(asked)
    assert 0 < len(kept) < len(PROBLEMS) and not path.exists()
    rows = run_suite(model, SUITE, PROBLEMS, batch_size=4, path=path)  # alone, after three
    assert {row["request"] for row in rows} == set(asked)
    assert all(asked[key] == 1 for key in kept) and list(tmp_path.iterdir()) == [path]


def test_a_line_that_another_rank_is_writing_is_no_answer_yet(tmp_path: Path) -> None:
    path = tmp_path / "m.six.jsonl"
    row = {"request": "a", "completion": "one\u2028two"}
    part_of(path, 1).write_text(json.dumps(row, ensure_ascii=False) + '\n{"request": "b')
    mine = SharedAnswers(path, 0, 2)
    assert mine.rows == {"a": row}
    assert part_of(path, 1).read_text().endswith('"b')  # nor is it touched
    with open(part_of(path, 1), "a") as file:
        file.write('"}\n')
    mine.gather()
    assert mine.rows.keys() == {"a", "b"}
    with pytest.raises(ValueError, match="give a path"):
        SharedAnswers(None, 0, 2)
    part_of(path, 1).write_text("[]\n")
    with pytest.raises(ValueError, match=r"rank-1:1: not a kept answer"):
        mine.gather()


def evaluated(folder: Path, out: Path, suite: Path) -> str:
    config = EvaluateConfig(name="evaluation", suites=(str(suite),), batch_size=4)
    return str(evaluate(config, out, models=[folder / "one", folder / "two"]))


def figures(out: Path) -> Any:
    report = json.loads((out / "evaluation.json").read_text())
    for model in report["models"].values():
        del model["tokens_per_second"]
    return report


@pytest.mark.slow
def test_two_ranks_leave_the_evaluation_that_one_leaves(tmp_path: Path) -> None:
    words = tokenizer()
    for seed, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        network = Transformer(small(vocab_size=words.vocab_size), seed=seed)
        save_checkpoint(tmp_path / name, network, words)
    rows = [{"prompt": p.prompt, "answer": p.answer, "id": p.id} for p in PROBLEMS]
    suite = tmp_path / "mine.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    alone.mkdir()
    ranks.mkdir()
    evaluated(tmp_path, alone, suite)
    assert on_ranks(2, tmp_path, evaluated, tmp_path, ranks, suite) == [str(ranks)] * 2
    assert figures(ranks) == figures(alone)
    files = [
        sorted(file.name for file in out.rglob("*") if file.is_file()) for out in (alone, ranks)
    ]
    assert files[0] == files[1]
