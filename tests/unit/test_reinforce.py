"""Learning from own answers: rewards rise, a stopped stage ends with the same bits, and what fails
says what and where.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import small

from pocketlm.eval.rewards import Question, opened_reward, read_questions
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.reinforce import ReinforceConfig, Rollouts, reinforce
from pocketlm.train import loop
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.optim import OptimConfig
from pocketlm.train.rollout import POLICY_LOSSES, seed_of

OPTIM = OptimConfig(
    lr=2e-3, num_steps=6, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
)
CONFIG = ReinforceConfig(
    name="rl",
    optim=OPTIM,
    loss="grpo",
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=6,
    micro_batch_size=8,
    seq_len=96,
    seed=0,
    families=("chain_sum", "leg_counting"),
    save=SaveConfig(every_steps=2, keep_last=1),
)
# rewards the share of the answer that is lower-case vowels, as a bandit with many arms
VOWELS = """
def reward(prompt, answer, row):
    return sum(letter in "aeiou" for letter in answer) / max(1, len(answer))

def chance(prompt, answer, row):
    import zlib
    return zlib.crc32((prompt + answer).encode()) % 97 / 97

def raises(prompt, answer, row):
    return 1 / 0

def nothing(prompt, answer, row):
    return float("nan")

def text(prompt, answer, row):
    return "good"

def hangs(prompt, answer, row):
    while True:
        pass

def ends(prompt, answer, row):
    import os
    os._exit(3)

def prints(prompt, answer, row):
    print("hello")
    return row["answer"] == answer
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    words = ["Compute 12 + 30. The answer is 42", "How many legs do 3 cats and 7 ants have?"]
    tokenizer = Tokenizer(train_tokenizer(words * 4, 280).backend, chat_template=CHATML)
    shape = small(vocab_size=tokenizer.vocab_size, max_position_embeddings=128)
    save_checkpoint(folder, Transformer(shape, seed=1), tokenizer)
    (folder / "mine.py").write_text(VOWELS)
    return folder


def run(config: ReinforceConfig, out: Path, model: Path, **inputs: Path) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    reinforce(config, out, model=model, **inputs)
    return json.loads((out / "rollouts.json").read_text())["steps"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "reinforce", "rejection"])
def test_what_is_rewarded_becomes_more_frequent_and_by_chance_does_not(
    loss: Any, start: Path, tmp_path: Path
) -> None:
    scale = {"dr_grpo": 6.0, "reinforce": 4.0}.get(loss, 1.0)  # their advantages are smaller
    optim = replace(OPTIM, num_steps=25, lr=2e-3 * scale)
    config = replace(CONFIG, loss=loss, optim=optim, samples_per_prompt=8, micro_batch_size=16)
    gains = {}
    for name in ("reward", "chance"):
        rewarded = replace(config, reward=f"{start / 'mine.py'}:{name}")
        steps = run(rewarded, tmp_path / name, start)
        assert [line["step"] for line in steps] == list(range(25))
        # what the vowels make up in answers of the last weights
        model, tokenizer = load_checkpoint(tmp_path / name)
        rollouts = Rollouts(rewarded, model, tokenizer, [], [], lambda *_: 0.0, tmp_path / "lines")
        prompt = tokenizer.encode_chat([{"role": "user", "content": "Compute 1+2."}])
        answers = rollouts.answers(99, [prompt] * 16)
        text = "".join(tokenizer.decode(answer.ids) for answer in answers)
        gains[name] = sum(letter in "aeiou" for letter in text) / max(1, len(text))
    assert gains["reward"] > 1.5 * gains["chance"], gains


def test_on_policy_distillation_brings_the_student_to_its_teacher(
    start: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_checkpoint(start)
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    shape = replace(model.config, initializer_range=0.1)
    save_checkpoint(teacher, Transformer(shape, seed=9), tokenizer)
    config = replace(CONFIG, loss="opd", optim=replace(OPTIM, num_steps=30, lr=3e-3))
    out = tmp_path / "out"
    run(config, out, start, teacher=teacher)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("place", ["rollout", "update"])
@pytest.mark.parametrize("at", [0, 3, 4])
def test_a_stage_that_was_stopped_ends_with_the_same_bits(
    place: str, at: int, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(CONFIG, tmp_path / "whole", start)
    assert any(0 < line["reward"] < 1 or line["tokens"] for line in whole)
    count = 0

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at + 1:
                raise Stopped
            return original(*arguments, **options)

        return replaced

    out = tmp_path / "broken"
    out.mkdir()
    with monkeypatch.context() as patch:
        if place == "update":
            patch.setattr(loop, "train_step", stopping(loop.train_step))
        else:
            patch.setattr(Rollouts, "note", stopping(Rollouts.note))
        with pytest.raises(Stopped):
            reinforce(CONFIG, out, model=start)
    assert run(CONFIG, out, start) == whole
    right, resumed = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(right[name], resumed[name]) for name in right)


def test_answers_are_the_models_own_and_differ_from_step_to_step(start: Path) -> None:
    model, tokenizer = load_checkpoint(start)
    rollouts = Rollouts(CONFIG, model, tokenizer, [], [], lambda *_: 0.0, start / "lines")
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Compute 1+2."}])
    first = rollouts.answers(0, [prompt] * 3)
    assert first == rollouts.answers(0, [prompt] * 3)
    assert first != rollouts.answers(1, [prompt] * 3)
    assert len({tuple(answer.ids) for answer in first}) > 6
    for answer in first:
        assert 1 <= len(answer.ids) <= CONFIG.max_new_tokens
        assert answer.cut != (answer.ids[-1] == tokenizer.end_of_turn_id)
    seeds = [seed_of(seed, step) for seed in range(3) for step in range(200)]
    ordered = sorted(seeds)
    gaps = [b - a for a, b in pairwise(ordered)]
    assert min(gaps) > 10_000 and min(seeds) >= 0 and max(seeds) < 2**62


def test_every_prompt_is_asked_once_before_any_is_asked_again(start: Path) -> None:
    model, tokenizer = load_checkpoint(start)
    prompts = [[n] for n in range(10)]
    rollouts = Rollouts(CONFIG, model, tokenizer, [], prompts, lambda *_: 0.0, start / "lines")
    asked = [number for step in range(5) for number in rollouts.chosen(step)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == list(range(10))
    assert asked[:10] != asked[10:]


# ---- rewards ----


def test_right_answers_are_rewarded_by_the_verifiers() -> None:
    with opened_reward("answer") as reward:
        sums = Question(prompt="Compute 11+31+20.", answer="62", family="chain_sum")
        assert reward(sums, "11+31: 42\n#### 62") == 1.0 and reward(sums, "#### 61") == 0.0
        assert reward(Question(prompt="?", answer="1,000"), "It is #### 1000") == 1.0
    with opened_reward("math") as reward:
        half = Question(prompt="?", answer="1/2")
        assert reward(half, r"\boxed{0.5}") == 1.0 and reward(half, r"\boxed{0.4}") == 0.0


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("raises", r"it raised ZeroDivisionError: .*mine\.py:10.*for the prompt 'Is 7 prime\?'"),
        ("nothing", r"it gave nan for the prompt 'Is 7 prime\?'"),
        ("text", r"it gave 'good' for the prompt"),
        ("hangs", r"it took more than 1 s for the prompt 'Is 7 prime\?'"),
        ("ends", r"its process ended for the prompt"),
        ("missing", r"it cannot be imported: AttributeError: .*missing"),
    ],
)
def test_a_reward_that_fails_is_one_sentence_that_names_the_prompt(
    function: str, problem: str, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a busy machine may take a while over what does not hang
    monkeypatch.setattr("pocketlm.eval.rewards.SECONDS", 1.0 if function == "hangs" else 60.0)
    name = f"{start / 'mine.py'}:{function}"
    with pytest.raises(ValueError, match=problem) as caught, opened_reward(name) as reward:
        reward(Question(prompt="Is 7 prime?"), "yes")
    assert str(caught.value).startswith(f"reward {name}: ") and "\n" not in str(caught.value)


def test_a_users_function_may_print_and_sees_the_row(start: Path) -> None:
    with opened_reward(f"{start / 'mine.py'}:prints") as reward:
        assert reward(Question(prompt="?", answer="4", row={"level": 2}), "4") == 1.0
        assert reward(Question(prompt="?", answer="4"), "5") == 0.0


def test_questions_are_read_from_a_file_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "a", "answer": "1", "level": 3}\n')
    (asked,) = read_questions(file, with_answers=True)
    assert (asked.prompt, asked.answer, asked.row["level"]) == ("a", "1", 3)
    file.write_text('{"prompt": "a"}\n')
    assert read_questions(file, with_answers=False)[0].answer == ""
    with pytest.raises(ValueError, match=r"asked\.jsonl:1: an object with the texts prompt and"):
        read_questions(file, with_answers=True)
    file.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        read_questions(file, with_answers=False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loss": "ppo"}, "loss 'ppo' is unknown"),
        ({"samples_per_prompt": 1}, "take 2 or more"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"micro_batch_size": 3}, "do not divide into micro-batches"),
        ({"max_new_tokens": 96}, "leaves no room for a prompt"),
        ({"families": ("cooking",)}, "families: cooking unknown"),
        ({"reward": "kind"}, "reward 'kind' is unknown"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(CONFIG, **changes)


def test_wrong_inputs_are_refused_before_anything_is_written(start: Path, tmp_path: Path) -> None:
    def refused(problem: str, config: ReinforceConfig = CONFIG, **inputs: Path) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=problem):
            reinforce(config, tmp_path, model=start, **inputs)

    refused("a teacher is what opd learns from", teacher=start)
    refused("a teacher is what opd learns from", replace(CONFIG, loss="opd"))
    refused("name families, or give a file", replace(CONFIG, families=()))
    refused("no prompt leaves room for 6 new tokens in seq_len 20", replace(CONFIG, seq_len=20))
    refused("seq_len 200 exceeds max_position_embeddings 128", replace(CONFIG, seq_len=200))
    refused("there is no file", replace(CONFIG, reward=f"{tmp_path / 'none.py'}:f"))
    other = tmp_path / "other"
    other.mkdir()
    words = train_tokenizer(["quite other words than those of the student"] * 3, 270)
    shape = small(vocab_size=words.vocab_size, max_position_embeddings=128)
    save_checkpoint(other, Transformer(shape), words)
    refused("other|vocabular|token", replace(CONFIG, loss="opd"), teacher=other)
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text('{"prompt": "a", "answer": "1"}\n')
    refused("families or a file of prompts, not both", prompts=prompts)


def test_a_users_file_is_part_of_what_the_stage_is_made_of(start: Path) -> None:
    assert CONFIG.reads() == []
    mine = replace(CONFIG, reward=f"{start / 'mine.py'}:reward")
    assert mine.reads() == [start / "mine.py"]


def test_the_names_of_losses_are_those_of_the_type() -> None:
    assert set(POLICY_LOSSES) == {"grpo", "dr_grpo", "dapo", "reinforce", "rejection", "opd"}
