"""Texts that join and leave one batch: each answer is what it would be alone."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shapes import small
from torch import Tensor

from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.inference.transformers_runtime import TransformersModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.serve.backend import Piece, Unavailable, Wanted
from pocketlm.serve.rows import CheckpointRows, OneRow, Rows
from pocketlm.serve.torch_backend import TorchBackend

CONTEXT, VOCABULARY, NEW = 96, 280, 20
TOLERANCE = 2e-4  # of logits up to 5, float32: another batch sums in another order. 2e-5 measured


def language_model(*, int8: bool = False) -> LanguageModel:
    config = small(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        num_hidden_layers=3,
        layer_types=(LOCAL, GLOBAL, LOCAL),
        sliding_window=8,
        initializer_range=0.3,
    )
    tokenizer = train_tokenizer(["a banana and a bandana, user assistant"] * 4, VOCABULARY)
    return LanguageModel(Transformer(config, seed=1), tokenizer, int8_cache=int8)


def prompts() -> list[list[int]]:
    drawn = random.Random(0)
    lengths = [1, 40, 3, 60, 9, 8, 70, 2, 17, 30]
    return [[drawn.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


@torch.inference_mode()
@pytest.mark.parametrize("int8", [False, True])
def test_logits_of_a_row_do_not_depend_on_who_joins_and_leaves(int8: bool) -> None:
    """Short texts beside long ones: windows that are full and not, caches that grow and shrink."""
    model = language_model(int8=int8)
    rows, drawn = CheckpointRows(model, 4), random.Random(1)
    running: list[list[int]] = []

    def check(logits: Tensor, ids: list[int]) -> None:
        # an int8 cache rounds keys and values, which `logits` does not
        alone = (
            CheckpointRows(model, 1).join(ids, 1)[0]
            if int8
            else torch.from_numpy(model.logits(ids))[-1]
        )
        torch.testing.assert_close(logits, alone, atol=TOLERANCE, rtol=0)

    for prompt in prompts():
        if len(running) == rows.slots:
            kept = sorted(drawn.sample(range(4), drawn.randrange(0, 4)))
            running = [running[row] for row in kept]
            rows.keep(kept)
        check(rows.join(prompt, NEW)[0], prompt)
        running.append(list(prompt))
        for _ in range(drawn.randrange(1, 6)):
            for ids in running:
                ids.append(drawn.randrange(3, VOCABULARY))
            for row, logits in enumerate(rows.step([ids[-1] for ids in running])):
                check(logits, running[row])
            full = [row for row, ids in enumerate(running) if len(ids) < CONTEXT - 6]
            if len(full) < len(running):
                running = [running[row] for row in full]
                rows.keep(full)


@pytest.fixture
def backend() -> Iterator[TorchBackend]:
    model = language_model()
    backend = TorchBackend(model, CheckpointRows(model, 3), "checkpoint")
    yield backend
    backend.close()


def wanted(ids: list[int], **options: object) -> Wanted:
    return Wanted(ids=ids, max_new_tokens=NEW, stop_ids={5, 6}, **options)  # type: ignore[arg-type]


async def pieces_of(backend: TorchBackend, one: Wanted) -> list[Piece]:
    return [piece async for piece in backend.answer(one)]


def test_answers_side_by_side_are_those_of_the_model_alone(backend: TorchBackend) -> None:
    model = language_model()
    samplings = [Sampling(), Sampling(temperature=1.0, top_k=20, seed=3, repetition_penalty=1.2)]
    calls = [(prompt, sampling) for prompt in prompts() for sampling in samplings]

    async def every() -> list[list[Piece]]:
        asked = [wanted(p, sampling=s, top_logprobs=0) for p, s in calls]
        return await asyncio.gather(*(pieces_of(backend, one) for one in asked))

    for (prompt, sampling), pieces in zip(calls, asyncio.run(every()), strict=True):
        (ids,) = model.generate([prompt], max_new_tokens=NEW, stop_ids={5, 6}, sampling=sampling)
        assert "".join(piece.text for piece in pieces) == model.tokenizer.decode(ids)
        assert sum(piece.tokens for piece in pieces) == len(ids)
        assert pieces[-1].ended == ("length" if len(ids) == NEW else "stop")
        scores = [score.logprob for piece in pieces for score in piece.scores]
        expected = model.log_probs([*prompt, *ids])[len(prompt) - 1 :].tolist()
        assert scores == pytest.approx(expected, abs=TOLERANCE)


def test_a_reader_that_leaves_gives_its_row_to_the_next(backend: TorchBackend) -> None:
    async def leave() -> None:
        for _ in range(3 * backend.slots):  # more than there are rows
            answer = backend.answer(wanted([9, 10]))
            await anext(answer)
            await answer.aclose()
        pieces = await pieces_of(backend, wanted([9, 10]))
        assert pieces[-1].ended

    asyncio.run(asyncio.wait_for(leave(), 60))


class FailingRows:
    """Rows that fail at one text, whose first id is 13, in its second step."""

    slots = 3

    def __init__(self, rows: Rows) -> None:
        self.rows, self.unlucky = rows, False

    def join(self, prompt: list[int], max_new_tokens: int) -> Tensor:
        self.unlucky = prompt[0] == 13
        return self.rows.join(prompt, max_new_tokens)

    def step(self, tokens: list[int]) -> Tensor:
        if self.unlucky:
            self.unlucky = False
            raise MemoryError("no room")
        return self.rows.step(tokens)

    def keep(self, rows: list[int]) -> None:
        self.rows.keep(rows)


def test_a_model_that_fails_says_so_and_answers_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = language_model()
    failing = TorchBackend(model, FailingRows(CheckpointRows(model, 3)), "checkpoint")  # type: ignore[arg-type]

    async def ask() -> list[Piece]:
        with pytest.raises(Unavailable, match="terminal shows why"):
            await pieces_of(failing, wanted([13, 14]))
        return await pieces_of(failing, wanted([12, 14]))

    assert asyncio.run(ask())[-1].ended and failing.healthy()
    assert "no room" in capsys.readouterr().err
    failing.close()
    assert not failing.healthy()


def test_a_folder_in_transformers_answers_one_after_the_other(tmp_path: Path) -> None:
    config = small(vocab_size=VOCABULARY, initializer_range=0.3)
    network, tokenizer = Transformer(config, seed=2), language_model().tokenizer
    save_checkpoint(tmp_path, network, tokenizer)
    model = TransformersModel(tmp_path)
    backend = TorchBackend(model, OneRow(model), "transformers")

    async def every() -> list[list[Piece]]:
        asked = [wanted([9, 10, 11]), wanted([20])]
        return await asyncio.gather(*(pieces_of(backend, one) for one in asked))

    answers = asyncio.run(every())
    alone = LanguageModel(network, tokenizer)
    for prompt, pieces in zip([[9, 10, 11], [20]], answers, strict=True):
        (ids,) = alone.generate([prompt], max_new_tokens=NEW, stop_ids={5, 6})
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    backend.close()
