"""Learn from answers that the model writes itself: verifiable rewards (GRPO and its kin), rejection
sampling, or a teacher's distribution on them (on-policy distillation).

MobileLLM-R1 section 7.4 studies GRPO after SFT and after a cold start; its code is not published.
On-policy distillation: Agarwal et al. 2023, arXiv 2306.13649, with reverse KL over the whole
vocabulary.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pocketlm.data.batches import permuted
from pocketlm.eval.rewards import OWN, Question, Reward, check_reward, opened_reward, read_questions
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.batch import Batch
from pocketlm.model.checkpoint import load_checkpoint, shape_of
from pocketlm.model.files import write_json
from pocketlm.model.json_lines import json_lines
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.problems.families import FAMILIES
from pocketlm.problems.generated import generate_problems
from pocketlm.stages.training import check_seq_len, save_first
from pocketlm.train.checkpoint import RESUME, SaveConfig
from pocketlm.train.distill.teacher import is_cached, live_shape, open_teacher
from pocketlm.train.loop import train
from pocketlm.train.losses import Distillation, LossFn, distillation_loss, next_token_loss
from pocketlm.train.memory import check_memory
from pocketlm.train.optim import OptimConfig, computing
from pocketlm.train.rollout import (
    POLICY_LOSSES,
    Answer,
    PolicyLoss,
    advantages,
    policy_batch,
    seed_of,
)

ROLLOUTS = "rollouts.jsonl"
ON_POLICY = Distillation(divergence="reverse_kl")
SHOWN = 5  # lines of progress in a stage


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """families: of generated problems (problems/families.py), where no file of prompts is given;
    their held-out questions are never asked. reward: answer, math, or FILE.py:function
    (eval/rewards.py). loss: grpo, dr_grpo, dapo, reinforce, rejection, or opd, which asks a teacher
    and no reward (train/rollout.py).

    Of each step's prompts_per_step prompts the model writes samples_per_prompt answers of at most
    max_new_tokens, drawn from its own distribution at temperature 1, and learns from them once.
    learn_cut: whether answers that were cut count. seq_len: of prompt and answer; longer prompts
    are left out. One process: several ranks would write answers of different lengths.
    """

    name: str
    optim: OptimConfig
    loss: PolicyLoss
    prompts_per_step: int
    samples_per_prompt: int
    max_new_tokens: int
    micro_batch_size: int
    seq_len: int
    seed: int
    families: tuple[str, ...] = ()
    reward: str = "answer"
    learn_cut: bool = True
    save: SaveConfig = SaveConfig(every_steps=10)

    def __post_init__(self) -> None:
        if self.loss not in POLICY_LOSSES:
            raise ValueError(
                f"{self.name}.loss {self.loss!r} is unknown; known: {', '.join(POLICY_LOSSES)}"
            )
        if self.loss != "opd" and self.samples_per_prompt < 2:
            raise ValueError(
                f"{self.name}.samples_per_prompt {self.samples_per_prompt}: an answer is compared "
                "with others to the same prompt; take 2 or more"
            )
        if min(self.prompts_per_step, self.samples_per_prompt, self.max_new_tokens) < 1:
            raise ValueError(
                f"{self.name}: prompts_per_step, samples_per_prompt and max_new_tokens must be at "
                "least 1"
            )
        if self.rows_per_step % self.micro_batch_size:
            raise ValueError(
                f"{self.name}: {self.rows_per_step} answers a step do not divide into "
                f"micro-batches of {self.micro_batch_size}"
            )
        if self.max_new_tokens >= self.seq_len:
            raise ValueError(
                f"{self.name}.max_new_tokens {self.max_new_tokens} leaves no room for a prompt in "
                f"seq_len {self.seq_len}"
            )
        if unknown := [name for name in self.families if name not in FAMILIES]:
            raise ValueError(
                f"{self.name}.families: {', '.join(unknown)} unknown; known: "
                f"{', '.join(sorted(FAMILIES))}"
            )
        check_reward(self.reward)

    @property
    def rows_per_step(self) -> int:
        """Answers of a step."""
        return self.prompts_per_step * self.samples_per_prompt

    def reads(self) -> list[Path]:
        """A user's own reward: when its file changes, so does the stage."""
        return [] if self.reward in OWN else [Path(self.reward.rpartition(":")[0])]

    def summary(self) -> str:
        return (
            f"{self.optim.num_steps:,} steps x {self.prompts_per_step:,} prompts x "
            f"{self.samples_per_prompt:,} answers, {self.loss}, {self.optim.summary()}"
        )


def reinforce(
    config: ReinforceConfig,
    out: Path,
    *,
    model: Path,
    prompts: Path | None = None,
    teacher: Path | None = None,
) -> Path:
    """A checkpoint in `out`, and rollouts.jsonl: of each step the mean reward, the share of groups
    whose answers were rewarded alike and of answers that were cut, and their mean length.

    prompts: JSON lines with "prompt" and, for the rewards of ours, "answer". teacher: of opd, a
    checkpoint of the same vocabulary. The answers are a function of weights, step and seed, so a
    stage that was stopped ends with the same bits. Prompts that leave no room for an answer are
    left out, and their number is printed. ValueError: no prompt is left, a reward that fails, a
    teacher where there is none to ask, or one of other words.
    """
    if (teacher is not None) != (config.loss == "opd"):
        raise ValueError(f"{config.name}: a teacher is what opd learns from, and opd alone")
    if teacher is not None and is_cached(teacher):
        raise ValueError(f"{config.name}: opd needs a live teacher; {teacher} is a cache")
    check_memory(config, shape_of(model), teacher=live_shape(teacher), masked=False)
    student, tokenizer = load_checkpoint(model)
    check_seq_len(config, student)
    questions, ids = _fitting(config, tokenizer, _questions(config, prompts))
    loss_fn: LossFn = next_token_loss
    if teacher is not None:
        loss_fn = distillation_loss(
            open_teacher(teacher, tokenizer, {}, config.optim, reads=config.seq_len), ON_POLICY
        )
    out.joinpath(RESUME).mkdir(parents=True, exist_ok=True)
    with _reward(config) as reward:
        writer = Rollouts(
            config, student, tokenizer, questions, ids, reward, out / RESUME / ROLLOUTS
        )
        student = train(
            student,
            writer.batches,
            loss_fn,
            config.optim,
            out,
            label=config.name,
            save=config.save,
            prefetch=False,
        )
    _report(config, out)
    return save_first(out, student, tokenizer)


@contextmanager
def _reward(config: ReinforceConfig) -> Iterator[Reward]:
    """The reward; of opd none is asked."""
    if config.loss == "opd":
        yield lambda question, answer: 0.0
        return
    with opened_reward(config.reward) as reward:
        yield reward


def _questions(config: ReinforceConfig, prompts: Path | None) -> list[Question]:
    if prompts is not None:
        if config.families:
            raise ValueError(f"{config.name}: families or a file of prompts, not both")
        verified = config.reward in ("answer", "math") and config.loss != "opd"
        return read_questions(prompts, with_answers=verified)
    if not config.families:
        raise ValueError(f"{config.name}: name families, or give a file of prompts")
    count = config.optim.num_steps * config.prompts_per_step
    return [
        Question(prompt=p["prompt"], answer=p["answer"], family=p["family"], row=p)
        for p in generate_problems(config.families, count, config.seed)
    ]


def _fitting(
    config: ReinforceConfig, tokenizer: Tokenizer, questions: Sequence[Question]
) -> tuple[list[Question], list[list[int]]]:
    """The questions that leave room for an answer, and their ids."""
    room = config.seq_len - config.max_new_tokens
    encoded = [(question, prompt_ids(tokenizer, question.prompt)) for question in questions]
    kept = [(question, ids) for question, ids in encoded if len(ids) <= room]
    if not kept:
        raise ValueError(
            f"{config.name}: no prompt leaves room for {config.max_new_tokens} new tokens in "
            f"seq_len {config.seq_len}; the shortest has {min(len(ids) for _, ids in encoded)}"
        )
    if len(kept) < len(encoded):
        line = (
            f"  {config.name}: {len(encoded) - len(kept):,} of {len(encoded):,} prompts are left "
        )
        line += f"out: longer than {room:,} tokens"
        Console(stderr=True, highlight=False).print(line, style="yellow", soft_wrap=True)
    return [question for question, _ in kept], [ids for _, ids in kept]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """As a turn where the model has a chat template, else as plain text."""
    if tokenizer.chat_template is None:
        return [*tokenizer.document_start, *tokenizer.encode(prompt)]
    return tokenizer.encode_chat([{"role": "user", "content": prompt}])


class Rollouts:
    """Answers of the model in training, as batches to learn from."""

    def __init__(
        self,
        config: ReinforceConfig,
        model: Transformer,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        prompts: Sequence[list[int]],
        reward: Reward,
        file: Path,
    ) -> None:
        """prompts: the ids of the questions. file: where a line goes for each step."""
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.questions, self.prompts, self.reward, self.file = questions, prompts, reward, file
        chat = tokenizer.chat_template is not None
        self.end = tokenizer.end_of_turn_id if chat else tokenizer.eos_id

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, from answers of the weights as they now are."""
        config = self.config
        chosen = self.chosen(step)
        answers = self.answers(step, [self.prompts[number] for number in chosen])
        S = config.samples_per_prompt
        rewards = torch.zeros(config.prompts_per_step, S)
        if config.loss != "opd":
            for group, number in enumerate(chosen):
                for sample in range(S):
                    text = self.tokenizer.decode(answers[group * S + sample].ids)
                    rewards[group, sample] = self.reward(self.questions[number], text)
        values = advantages(rewards, config.loss).flatten()
        if not config.learn_cut:
            values = values * torch.tensor([float(not answer.cut) for answer in answers])
        self.note(step, answers, rewards)
        size = config.micro_batch_size
        return [
            policy_batch(
                answers[first : first + size],
                values[first : first + size].tolist(),
                config.loss,
                longest=config.max_new_tokens,
            )
            for first in range(0, len(answers), size)
        ]

    def chosen(self, step: int) -> list[int]:
        """Which prompts a step asks: all once in an order that the seed draws, then again in
        another.
        """
        count, size = self.config.prompts_per_step, len(self.prompts)
        places = [divmod(step * count + number, size) for number in range(count)]
        return [permuted(at, size, (self.config.seed, turn)) for turn, at in places]

    def answers(self, step: int, prompts: Sequence[list[int]]) -> list[Answer]:
        """samples_per_prompt answers to each prompt, in a row."""
        config = self.config
        repeated = [ids for ids in prompts for _ in range(config.samples_per_prompt)]
        training, plain = self.model.training, replace(self.model.compute, compile=False)
        self.model.eval()
        with computing(self.model, plain):
            drawn = LanguageModel(self.model, self.tokenizer).generate(
                repeated,
                max_new_tokens=config.max_new_tokens,
                stop_ids={self.end},
                sampling=Sampling(temperature=1.0, seed=seed_of(config.seed, step)),
            )
        self.model.train(training)
        made = []
        for prompt, ids in zip(repeated, drawn, strict=True):
            cut = len(ids) >= config.max_new_tokens
            made.append(Answer(prompt, ids if cut else [*ids, self.end], cut))
        return made

    def note(self, step: int, answers: Sequence[Answer], rewards: torch.Tensor) -> None:
        """A line about the step; of a step that was taken twice the last one counts."""
        alike = (rewards == rewards[:, :1]).all(1).double().mean()
        line = {
            "step": step,
            "reward": None if self.config.loss == "opd" else float(rewards.double().mean()),
            "equal_groups": None if self.config.loss == "opd" else float(alike),
            "cut": sum(answer.cut for answer in answers) / len(answers),
            "tokens": sum(len(answer.ids) for answer in answers) / len(answers),
        }
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _report(config: ReinforceConfig, out: Path) -> None:
    """rollouts.json from the lines of all steps, and what a person should know of them."""
    lines = {line["step"]: line for _, line in json_lines(out / RESUME / ROLLOUTS)}
    steps = [lines[step] for step in sorted(lines)]
    write_json(out / "rollouts.json", {"loss": config.loss, "steps": steps})
    console = Console(stderr=True, highlight=False)
    for first, last in _parts(len(steps)):
        part = steps[first:last]

        def mean(name: str, part: list[dict[str, Any]] = part) -> float:
            return sum(line[name] for line in part) / len(part)

        words = f"  {config.name}: steps {first} to {last - 1}: "
        if config.loss != "opd":
            words += f"reward {mean('reward'):.3f}, {mean('equal_groups'):.0%} of groups alike, "
        words += f"{mean('cut'):.0%} of answers cut, {mean('tokens'):.0f} tokens each"
        console.print(words, soft_wrap=True, markup=False)


def _parts(count: int) -> list[tuple[int, int]]:
    bounds = sorted({round(count * part / SHOWN) for part in range(SHOWN + 1)})
    return list(pairwise(bounds))
