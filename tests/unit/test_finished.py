"""What a finished recipe prints: a line on each stage within the terminal's width, and one answer
of the file that ships.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from finished_run import evaluation, whole_run, write_stage
from rich.console import Console

from pocketlm.commands import finished
from pocketlm.commands.finished import added_table, first_question, fit, show_results
from pocketlm.report.added import added, road_to
from pocketlm.report.evaluation import read_evaluation
from pocketlm.report.road_picture import road_picture
from pocketlm.stages.report import read_stage


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Path]:
    return whole_run(tmp_path)


def test_every_stage_has_a_line_within_the_width(run: dict[str, Path]) -> None:
    stages = [read_stage(folder) for folder in run.values()]
    words = added(stages, read_evaluation(run["evaluation"]))
    for width in (60, 80, 160):
        lines = added_table(stages, words, width).plain.splitlines()
        assert len(lines) == 1 + len(stages) + 1 and max(map(len, lines)) <= width
        assert lines[-1].split()[0] == "together"
    wide = added_table(stages, words, 160).plain.replace("\xa0", " ")
    assert "problems 62 %, code 15 %, notes 17 %" not in wide  # the largest first
    assert "problems 62 %, notes 17 %, code 15 %" in wide
    assert "model.gguf 812 kB, model.pte 812 kB" in wide
    assert "loss 6.27 → 2.12 in 1.23 M tokens" in wide  # teacher was not evaluated


def test_a_model_is_compared_with_the_evaluated_one_it_comes_from(run: dict[str, Path]) -> None:
    stages = [read_stage(folder) for folder in run.values()]
    words = added(stages, read_evaluation(run["evaluation"]))
    assert words["int4"][0].replace("\xa0", " ") == "solves 78.3 → 76.7 %"  # chat's, and its own
    assert words["phase2"][0] == "1.793 bits a byte"  # the first: nothing to compare with
    assert not any("bits" in part for part in words["chat"])  # it continues no text


def test_the_road_follows_models_and_ends_where_one_begins_or_in_a_circle(tmp_path: Path) -> None:
    folders = [
        write_stage(tmp_path, "pretrain", "base", 1.0, {}),
        write_stage(tmp_path, "pretrain", "other", 1.0, {}),
        write_stage(tmp_path, "finetune", "chat", 1.0, {}, model="base"),
        write_stage(tmp_path, "export", "files", 1.0, {}, model="chat"),
        write_stage(tmp_path, "pretrain", "circle", 1.0, {}, model="circle"),
    ]
    stages = [read_stage(folder) for folder in folders]
    assert [stage.name for stage in road_to(stages, "files")] == ["base", "chat", "files"]
    assert [stage.name for stage in road_to(stages, "circle")] == ["circle"]
    assert road_to(stages, "nowhere") == []


def test_the_picture_has_a_place_for_each_model_on_the_road(run: dict[str, Path]) -> None:
    content, stages = (
        read_evaluation(run["evaluation"]),
        [read_stage(folder) for folder in run.values()],
    )
    chat, int4 = (next(s for s in stages if s.name == name) for name in ("chat", "int4"))
    assert road_picture([chat], content) is None  # one model is no road
    drawing = road_picture([chat, int4], content)
    assert drawing is not None
    names = [text.text for text in drawing.iter("text") if text.get("class") == "cell"]
    assert names == ["chat", "int4"]


def test_words_that_do_not_fit_are_left_out_and_the_first_is_cut() -> None:
    assert fit(["a" * 30, "b" * 30], 80) == "a" * 30 + "; " + "b" * 30
    assert fit(["a" * 30, "b" * 30, "c"], 40) == "a" * 30 + "; c"
    assert fit(["a" * 90], 40) == "a" * 39 + "…"
    assert fit(["a" * 90], 5) == "" and fit([], 80) == ""


def test_the_file_that_ships_answers_a_question_at_the_end(
    run: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = list(run.values())
    assert first_question(run["evaluation"], folders) is None  # the file is gone
    (run["files"] / "model.gguf").write_bytes(b"")
    question = first_question(run["evaluation"], folders)
    assert question is not None and question.prompt == "Compute 2 + 40 - 2. "
    assert question.model == run["files"] / "model.gguf" and question.max_new_tokens == 160

    asked: list[Sequence[int]] = []

    class Tokenizer:
        chat_template, document_start, stop_ids = None, (1,), {2}

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Sequence[int]) -> str:
            return bytes(ids).decode()

    def generate(prompts: list[list[int]], **options: object) -> list[list[int]]:
        asked.extend(prompts)
        assert options["max_new_tokens"] == 160
        return [list(b"2 + 40 = 42\n#### 40 [/red]")]

    @contextmanager
    def opened(path: Path) -> Iterator[SimpleNamespace]:
        assert path.name == "model.gguf"
        yield SimpleNamespace(tokenizer=Tokenizer(), generate=generate)

    monkeypatch.setattr("pocketlm.inference.open.opened", opened)
    monkeypatch.setattr(finished, "Console", lambda **how: Console(width=80, **how))
    show_results(folders)
    lines = capsys.readouterr().out.splitlines()
    assert b"Compute 2 + 40 - 2." in bytes(asked[0])
    start = next(i for i, line in enumerate(lines) if line.startswith("asked now"))
    assert lines[start + 1 : start + 4] == [
        "you    Compute 2 + 40 - 2. ",
        "model  2 + 40 = 42",
        "       #### 40 [/red]",
    ]
    assert lines[-1].startswith("talk to it:") and lines[-1].endswith("files/model.gguf")


def test_an_evaluation_of_likelihoods_asks_nothing(tmp_path: Path) -> None:
    files = evaluation()
    files["evaluation.json"]["suites"]["pocket"]["kind"] = "choices"
    folder = write_stage(tmp_path, "evaluate", "evaluation", 1.0, files)
    assert first_question(folder, [folder]) is None
    files["evaluation.json"]["suites"] = {}
    (folder / "evaluation.json").write_text(json.dumps(files["evaluation.json"]))
    assert first_question(folder, [folder]) is None


def test_a_recipe_without_evaluation_has_its_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(finished, "Console", lambda **how: Console(file=shown, width=80, **how))
    show_results([write_stage(tmp_path, "write", "only", 2.0, {})])
    assert shown.getvalue().splitlines() == [
        "what each stage added",
        "only      2.0\xa0s",
        "together  2.0\xa0s",
    ]
