"""Preferences: how pairs are read, what a model learns from them, and that a stopped stage ends
with the same bits.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapes import small

from pocketlm.data.conversation_store import write_store
from pocketlm.data.conversations import Tally
from pocketlm.data.preferences import (
    ALIKE,
    APART,
    NO_LOSER,
    NO_PROMPT,
    NO_WINNER,
    OTHER_PROMPT,
    PairRows,
    PairTally,
    read_pairs,
    split_pairs,
)
from pocketlm.model.batch import IGNORE_INDEX
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages import prefer as stage
from pocketlm.stages.prefer import PreferConfig, prefer
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.optim import OptimConfig
from pocketlm.train.preference_loss import Preference
from tests.unit.rank_processes import on_ranks

TURNS = [{"role": "user", "content": "Is 7 prime?"}]
YES = {"role": "assistant", "content": "Yes, it is."}
NO = {"role": "assistant", "content": "No"}
AND = {"role": "user", "content": "And 8?"}
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Is 7 prime?", "chosen": YES["content"], "rejected": NO["content"]},
    "messages": {"prompt": TURNS, "chosen": [YES], "rejected": [NO]},
    "conversations": {"chosen": [*TURNS, YES], "rejected": [*TURNS, NO]},
    "conversations beside a prompt": {
        "prompt": "Is 7 prime?",
        "chosen": [*TURNS, YES],
        "rejected": [*TURNS, NO],
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = ["Is 7 prime? Yes, it is. No", "What is 12 + 30? It is 42, surely.", "I do not know."]
    return Tokenizer(train_tokenizer(words * 4, 290).backend, chat_template=CHATML)


def written(folder: Path, rows: list[Any]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(
    file: Path, tokenizer: Tokenizer, seq_len: int = 200
) -> tuple[list[tuple[str, str]], PairTally]:
    """(whole text, its answer) of each side in order."""
    tally = PairTally()
    sides = []
    for ids, learnt in read_pairs(file, tokenizer, seq_len, tally):
        answer = [token for token, learn in zip(ids, learnt, strict=True) if learn]
        sides.append(
            (tokenizer.decode(ids, keep_special=True), tokenizer.decode(answer, keep_special=True))
        )
    return sides, tally


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_read_as_the_same(
    form: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sides, tally = read(written(tmp_path, [FORMS[form]]), tokenizer)
    prompt = tokenizer.render(TURNS, add_generation_prompt=True)
    assert [answer.removesuffix("\n") for _, answer in sides] == [
        f"{YES['content']}<|im_end|>",
        f"{NO['content']}<|im_end|>",
    ]
    assert all(text.startswith(prompt) for text, _ in sides)
    assert (tally.rows, tally.pairs, tally.left_out) == (1, 1, {})


def test_of_a_long_conversation_only_what_differs_is_learnt(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = [*TURNS, YES, {"role": "user", "content": "What is 12 + 30?"}]
    row = {
        "system": "I do not know.",
        "prompt": before,
        "chosen": [{"role": "assistant", "content": "It is 42"}],
        "rejected": [{"role": "assistant", "content": "It is 7"}],
    }
    sides, _ = read(written(tmp_path, [row]), tokenizer)
    assert [answer.removesuffix("\n") for _, answer in sides] == [
        "It is 42<|im_end|>",
        "It is 7<|im_end|>",
    ]
    assert all("I do not know." in text and "Yes, it is." in text for text, _ in sides)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b"}, NO_LOSER),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, NO_LOSER),
        ({"prompt": "a", "chosen": "b", "rejected": None}, NO_LOSER),
        ({"prompt": "a", "chosen": "b", "rejected": "  "}, NO_LOSER),
        ({"prompt": TURNS, "chosen": [YES], "rejected": [{**NO, "content": " "}]}, NO_LOSER),
        ({"prompt": TURNS, "chosen": [{**YES, "content": ""}], "rejected": [NO]}, NO_WINNER),
        ({"prompt": "Is 8?", "chosen": [*TURNS, YES], "rejected": [*TURNS, NO]}, OTHER_PROMPT),
        ({"chosen": [*TURNS, YES, *TURNS, YES], "rejected": [*TURNS, YES, AND, NO]}, APART),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, NO_WINNER),
        ({"prompt": "a", "rejected": "b"}, NO_WINNER),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ALIKE),
        ({"chosen": "b", "rejected": "c"}, NO_PROMPT),
        ({"chosen": [*TURNS, YES], "rejected": [NO]}, NO_PROMPT),
        ({"chosen": [*TURNS, YES], "rejected": TURNS}, NO_LOSER),
        ({"chosen": [{"role": "user", "content": "x"}, YES], "rejected": [*TURNS, NO]}, NO_PROMPT),
        ({"prompt": "a " * 300, "chosen": "b", "rejected": "c"}, "both answers take more than"),
        ({"messages": [*TURNS, YES]}, "a row that cannot be read"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "a row that cannot be read"),
        ({"prompt": 5, "chosen": "b", "rejected": "c"}, "a row that cannot be read"),
        ({"prompt": "a", "chosen": [{"role": "me"}], "rejected": "c"}, "a row that cannot be read"),
        ([1], "a row that cannot be read"),
    ],
)
def test_what_is_no_pair_is_left_out_and_counted_by_its_reason(
    row: Any, reason: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sides, tally = read(written(tmp_path, [row, FORMS["texts"]]), tokenizer)
    assert len(sides) == 2 and tally.rows == 2 and tally.pairs == 1
    (named,) = tally.left_out
    assert named.startswith(reason) and tally.left_out[named] == 1
    assert any(reason in line and "pairs.jsonl:1" in line for line in tally.lines())
    file = written(tmp_path, [row])
    with pytest.raises(ValueError, match=r"pairs\.jsonl: 1 left out .*nothing to train on"):
        read(file, tokenizer)


def test_a_file_without_rows_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row is a pair"):
        read(written(tmp_path, []), tokenizer)


def test_pairs_are_held_out_evenly_and_never_all() -> None:
    assert split_pairs(10, 0.0) == (list(range(10)), [])
    assert split_pairs(1, 0.5) == ([0], [])
    for count in (2, 3, 10, 101):
        for share in (0.01, 0.1, 0.5, 0.9):
            learnt, held = split_pairs(count, share)
            assert sorted(learnt + held) == list(range(count)) and learnt and held
            assert len(held) == min(count - 1, max(1, round(share * count)))


def test_a_row_holds_both_answers_as_two_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = written(tmp_path, [FORMS["texts"], {"prompt": "?", "chosen": "No", "rejected": "Yes"}])
    pairs = list(read_pairs(file, tokenizer, 96, PairTally()))
    options = {"seq_len": 96, "vocab_size": tokenizer.vocab_size, "packed": False, "made_of": {}}
    write_store(tmp_path / "store", pairs, Tally(), **options)
    rows = PairRows(tmp_path / "store", 96, tokenizer.eos_id, [1, 0])
    assert len(rows) == 2
    for row, pair in ((rows[0], 1), (rows[1], 0)):
        ids, labels, documents = row
        for side in (0, 1):
            tokens, learnt = pairs[2 * pair + side]
            mine = documents == side
            assert ids[mine].tolist() == tokens[:-1]
            expected = [
                t if learn else IGNORE_INDEX
                for t, learn in zip(tokens[1:], learnt[1:], strict=True)
            ]
            assert labels[mine].tolist() == expected
        assert set(labels[documents < 0]) <= {IGNORE_INDEX}


# ---- the stage ----

OPTIM = OptimConfig(
    lr=3e-3, num_steps=12, warmup_steps=2, final_lr_share=0.1, compute_dtype="float32"
)
CONFIG = PreferConfig(
    name="safe",
    optim=OPTIM,
    seq_len=160,
    rows_per_step=4,
    micro_batch_size=2,
    seed=0,
    held_out=0.2,
    save=SaveConfig(every_steps=4, keep_last=1),
)


@pytest.fixture(scope="module")
def start(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a checkpoint, pairs in which "Yes" is preferred)."""
    folder = tmp_path_factory.mktemp("prefer")
    shape = small(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    save_checkpoint(folder, Transformer(shape, seed=1), tokenizer)
    rows = []
    for n in range(20):
        wordy = {"prompt": f"Is {n} prime?", "chosen": "Yes, it is.", "rejected": "No"}
        rows.append(wordy if n % 2 else {**wordy, "chosen": "It is", "rejected": "I do not know."})
    return folder, written(folder, rows)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def run(config: PreferConfig, out: Path, start: tuple[Path, Path]) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    prefer(config, out, model=start[0], pairs=start[1])
    return json.loads((out / "preferences.json").read_text())


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_the_chosen_answers_become_the_likelier_and_with_sides_changed_the_others(
    loss: Any, start: tuple[Path, Path], tmp_path: Path
) -> None:
    how = Preference(loss=loss, beta=0.5, sft_weight=0.0)
    config = replace(CONFIG, preference=how, optim=replace(OPTIM, num_steps=40))
    figures = run(config, tmp_path / "right", start)
    assert figures["held_out"] and figures["pairs"] == 4
    assert figures["margin_grew"] == 1.0 and figures["margin_growth"] > 1
    changed = [json.loads(line) for line in start[1].read_text().splitlines()]
    for row in changed:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    other = written(tmp_path, changed)
    turned = run(config, tmp_path / "wrong", (start[0], other))
    assert turned["margin_grew"] == 1.0
    assert turned["before"]["chosen_log_prob"] == pytest.approx(
        figures["before"]["rejected_log_prob"], abs=1e-3
    )


def test_the_sft_term_keeps_the_chosen_answer_likely(
    start: tuple[Path, Path], tmp_path: Path
) -> None:
    optim = replace(OPTIM, num_steps=40)
    bare, kept = (
        run(
            replace(CONFIG, optim=optim, preference=Preference(sft_weight=weight)),
            tmp_path / str(weight),
            start,
        )
        for weight in (0.0, 2.0)
    )
    assert kept["after"]["chosen_log_prob"] > bare["after"]["chosen_log_prob"]
    assert kept["after"]["chosen_log_prob"] > kept["before"]["chosen_log_prob"]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_a_stage_that_was_stopped_ends_with_the_same_bits(
    at: int, start: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(CONFIG, tmp_path / "whole", start)
    step: Callable[..., Any] = loop.train_step
    count = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == at + 1:
            raise Stopped
        return step(*arguments)

    out = tmp_path / "broken"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        with pytest.raises(Stopped):
            prefer(CONFIG, out, model=start[0], pairs=start[1])
    with monkeypatch.context() as patch:  # the reference is not computed again
        patch.setattr(stage, "read_pairs", None)
        figures = run(CONFIG, out, start)
    assert figures == whole
    right, resumed = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(right[name], resumed[name]) for name in right)


def test_the_reference_is_what_the_model_gave_before_training(
    start: tuple[Path, Path], tmp_path: Path
) -> None:
    run(CONFIG, tmp_path / "out", start)
    before = np.load(tmp_path / "out" / "resume" / "preferences" / "reference.npy")
    model, tokenizer = load_checkpoint(start[0])
    sides = list(read_pairs(start[1], tokenizer, CONFIG.seq_len, PairTally()))
    assert before.shape == (20, 2)
    for value, (ids, learnt) in zip(before.reshape(-1), sides, strict=True):
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([ids]))[0, :-1].double(), -1)
        each = log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        assert float(each[torch.tensor(learnt[1:])].sum()) == pytest.approx(float(value), abs=1e-4)


def test_what_was_begun_with_other_pairs_or_another_model_is_not_gone_on_with(
    start: tuple[Path, Path], tmp_path: Path
) -> None:
    run(CONFIG, tmp_path / "out", start)
    rows = [json.loads(line) for line in start[1].read_text().splitlines()]
    for row in rows:  # a file of the same size
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    turned = written(tmp_path, rows)
    assert turned.stat().st_size == start[1].stat().st_size
    model, tokenizer = load_checkpoint(start[0])
    other = tmp_path / "other"
    other.mkdir()
    save_checkpoint(other, Transformer(model.config, seed=8), tokenizer)
    for inputs in ((start[0], turned), (other, start[1])):
        with pytest.raises(ValueError, match="was begun with other pairs, another model"):
            run(CONFIG, tmp_path / "out", inputs)


def of_ranks(out: Path, model: Path, pairs: Path) -> str:
    return str(prefer(CONFIG, out, model=model, pairs=pairs))


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(start: tuple[Path, Path], tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    together.mkdir()
    figures = run(CONFIG, alone, start)
    assert on_ranks(2, tmp_path, of_ranks, together, *start) == [str(together)] * 2
    one, two = weights(alone), weights(together)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    shared = json.loads((together / "preferences.json").read_text())
    assert shared["margin_growth"] == pytest.approx(figures["margin_growth"], abs=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "kto"},
        {"beta": 0.0},
        {"label_smoothing": 0.5},
        {"label_smoothing": 0.1, "loss": "ipo"},
        {"sft_weight": -1.0},
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields)).split("_")[0]):
        Preference(**fields)
    with pytest.raises(ValueError, match="held_out"):
        replace(CONFIG, held_out=1.0)
