"""What every Runtime promises: log-probabilities, against transformers' and in chunks, and answers
from several threads.
"""

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shapes import small
from transformers import AutoModelForCausalLM

from pocketlm.inference import torch_runtime
from pocketlm.inference.open import opened
from pocketlm.inference.runtime import Runtime, log_probs_from
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer

TOLERANCE = 1e-4  # nats, of log-probabilities of 2 to 10; float32 everywhere. 1.4e-5 measured
CONFIG = small(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=600,
    initializer_range=0.2,
)
IDS = torch.randint(3, 320, (600,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, Transformer(CONFIG), tokenizer)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    """By transformers' own network, and torch's cross-entropy in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    values = -F.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()
    assert values.std() > 0.5  # flat ones would prove little
    return values


KINDS = ["checkpoint", "transformers", "gguf", "pte"]


@pytest.fixture(scope="module", params=KINDS)
def runtime(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runtime]:
    with opened_as(request.param, folder, tmp_path_factory.mktemp("files")) as model:
        yield model


@contextmanager
def opened_as(kind: str, folder: Path, files: Path) -> Iterator[Runtime]:
    """The checkpoint in `folder`, or a file that is written of it."""
    network, tokenizer = load_checkpoint(folder)
    path = files / f"model.{kind}"
    if kind == "gguf":
        pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")
        from pocketlm.export.gguf import write_gguf

        write_gguf(network, tokenizer, path, "f32")
    elif kind == "pte":
        pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
        from pocketlm.export.pte import write_pte

        write_pte(network, tokenizer, path, context_length=600)
    else:
        path = folder
    chosen = "transformers" if kind == "transformers" else None
    with opened(path, exact=True, runtime=chosen) as model:
        yield model


def test_every_runtime_gives_the_log_probabilities_of_transformers(runtime, expected) -> None:
    for length in (2, 40, 600):  # 600: several calls of llama.cpp and ExecuTorch
        values = runtime.log_probs(IDS[:length])
        assert values.dtype == np.float32 and values.shape == (length - 1,)
        np.testing.assert_allclose(values, expected[: length - 1], atol=TOLERANCE)
    assert runtime.log_probs(IDS[:1]).shape == (0,)
    with pytest.raises(ValueError, match="empty prompt"):
        runtime.log_probs([])
    with pytest.raises(ValueError, match="not all in the vocabulary of 320"):
        runtime.log_probs([3, 320])


def test_answers_from_several_threads_at_once_are_those_of_one(runtime) -> None:
    """Long and short prompts, drawn and greedy, streams that are read in turns with all of them."""
    prompts = [IDS[: 40 * n + 1] for n in range(4)]
    samplings = [Sampling(), Sampling(temperature=1.0, seed=3)]
    options: dict[str, Any] = {"max_new_tokens": 12, "stop_ids": {5}}

    def generated(prompt: list[int], sampling: Sampling) -> list[int]:
        return runtime.generate([prompt], sampling=sampling, **options)[0]

    def streamed(prompt: list[int], sampling: Sampling) -> list[int]:
        return list(runtime.stream(prompt, sampling=sampling, **options))

    calls = [(p, s) for p in prompts for s in samplings]
    alone = [generated(*call) for call in calls]
    scores = runtime.log_probs(IDS[:40])
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, *c) for c in calls for ask in (generated, streamed)]
        together = pool.submit(runtime.log_probs, IDS[:40])
        assert [answer.result() for answer in answers] == [a for a in alone for _ in range(2)]
        np.testing.assert_allclose(together.result(), scores, atol=1e-6)
    assert len({tuple(answer) for answer in alone}) > 4


def test_chunks_change_nothing_and_are_dropped_one_by_one(folder, monkeypatch) -> None:
    model = LanguageModel.open(folder)
    whole = model.log_probs(IDS)
    for tokens in (1, 7, 599, 600):
        monkeypatch.setattr(torch_runtime, "LOGITS_BYTES", 4 * CONFIG.vocab_size * tokens)
        np.testing.assert_allclose(model.log_probs(IDS), whole, atol=1e-5)
    alive: list[weakref.ref[torch.Tensor]] = []

    def chunks() -> Iterator[torch.Tensor]:
        logits = torch.from_numpy(model.logits(IDS[:40]))
        for start in range(0, 40, 8):
            gc.collect()
            assert not any(chunk() is not None for chunk in alive)
            alive.append(weakref.ref(chunk := logits[start : start + 8].clone()))
            yield chunk
            del chunk

    np.testing.assert_allclose(log_probs_from(chunks(), IDS[:40]), whole[:39], atol=1e-5)
    assert len(alive) == 5


@pytest.mark.parametrize(
    ("kind", "window"),
    [*((kind, None) for kind in KINDS[:3]), ("checkpoint", 24), ("gguf", 24), ("pte", 24)],
)
def test_every_runtime_scores_continuations_as_whole_texts(
    kind: str, window: int | None, tmp_path: Path
) -> None:
    """By one pass of our network over each whole text, in float64 from its logits on."""
    layers = () if window is None else ModelConfig.local_global(3, every=2)
    config = replace(CONFIG, layer_types=layers, sliding_window=window, num_hidden_layers=3)
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)
    network = Transformer(config)
    save_checkpoint(tmp_path, network, tokenizer)
    ours = LanguageModel(network, tokenizer)
    shots, likely = IDS[:210], IDS[210:230]
    greedy = ours.generate([shots + likely], max_new_tokens=4, stop_ids=set())[0]
    problems = [
        [(shots + IDS[300:330], IDS[n : n + 5]) for n in (400, 404, 409)],
        [(shots + likely, greedy), (shots + likely, [*greedy[:-1], greedy[-1] ^ 1])],
        [(shots + IDS[340:480], [token]) for token in (7, 9, 11, 13)],
        [(shots + IDS[500 : 502 + n], IDS[510:514]) for n in range(2)],
    ]
    with opened_as(kind, tmp_path, tmp_path) as model:
        score = model.scorer()
        for shared in (shots, []):
            for _ in range(2):  # from what is kept, too
                for pairs, scored in zip(problems, score(problems, shared), strict=True):
                    for (context, ids), found in zip(pairs, scored, strict=True):
                        log_probs = torch.from_numpy(ours.logits(context + ids)).double()
                        log_probs = log_probs.log_softmax(-1)[len(context) - 1 : -1]
                        wanted = log_probs.gather(1, torch.tensor(ids)[:, None]).sum().item()
                        assert found.log_prob == pytest.approx(wanted, abs=TOLERANCE)
                        assert found.greedy is (log_probs.argmax(1).tolist() == ids)
                answer = model.generate([shots[:9]], max_new_tokens=2, stop_ids=set())[0]
                assert len(answer) == 2  # whose text takes the place of what was kept in a .pte


def test_prompts_with_the_same_beginning_are_answered_as_each_alone(runtime) -> None:
    prompts = [IDS[:150] + IDS[n : n + 3 + n // 50] for n in (200, 333, 260, 500)]
    options: dict[str, Any] = {"max_new_tokens": 6, "stop_ids": {5}}
    alone = [runtime.generate([prompt], **options)[0] for prompt in prompts]
    assert runtime.generate(prompts, **options) == alone
    assert len({tuple(answer) for answer in alone}) > 2


@pytest.mark.parametrize("window", [None, 24])
def test_a_beginning_that_is_read_once_gives_the_same_logits(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one, two and all prompts, of other lengths; the shorter ones read some ids of the
    beginning again.
    """
    layers = () if window is None else ("sliding_attention", "full_attention")
    network = Transformer(replace(CONFIG, layer_types=layers, sliding_window=window))
    model = LanguageModel(network, train_tokenizer(["the quick brown fox"] * 4, 270))
    prompts = [IDS[:100] + IDS[n : n + length] for n, length in ((200, 9), (300, 60), (400, 1))]
    wanted = torch.stack([torch.from_numpy(model.logits(prompt)[-1]) for prompt in prompts])
    for tokens in (1, 130, 10_000):
        monkeypatch.setattr(torch_runtime, "PREFILL_TOKENS", tokens)
        cache = model._cache(3, 170)
        with torch.inference_mode():
            found = network.head(model._prefill(prompts, cache))
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
            newest = torch.tensor([[7], [8], [9]])
            positions = torch.tensor([[len(prompt)] for prompt in prompts])
            after = network.head(network.hidden(newest, positions, cache)[:, -1])
        for row, prompt in enumerate(prompts):
            whole = torch.from_numpy(model.logits([*prompt, 7 + row])[-1])
            torch.testing.assert_close(after[row], whole, atol=1e-4, rtol=0)
