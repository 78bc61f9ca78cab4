"""Families that our own network does not hold, opened in transformers: answers are the library's
own.

Folders are tiny and random, with large weights, so that answers vary.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapes import small
from stock_families import FAMILIES, save_family
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.inference import transformers_runtime
from pocketlm.inference.open import open_model, opened
from pocketlm.inference.runtime import Runtime
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.stop_strings import StopMatcher
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.inference.transformers_runtime import UNSAID_LENGTH, TransformersModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.tokenizer import Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

TOLERANCE = 1e-4  # of logits of about two units, float32; 8e-6 measured
PROMPTS = [
    torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (30, 4, 11)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 280)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_family(request.param, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Runtime:
    return open_model(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return network.eval()


def test_a_family_of_its_own_is_opened_in_transformers_and_one_line_says_why(
    folder, capsys
) -> None:
    with opened(folder) as opened_model:
        assert isinstance(opened_model, TransformersModel)
    (line,) = capsys.readouterr().err.splitlines()
    kind = AutoConfig.from_pretrained(folder).model_type
    assert f"model_type '{kind}' is not read here" in line and "opened in transformers" in line


def test_greedy_answers_are_those_of_transformers_alone_and_together(model, theirs) -> None:
    together = model.generate(PROMPTS, max_new_tokens=24, stop_ids=set())
    for prompt, answer in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )[0, len(prompt) :].tolist()
        assert answer == expected
        assert list(model.stream(prompt, max_new_tokens=24, stop_ids=set())) == expected
    assert (
        len({tuple(answer) for answer in together}) == 3
        and len({*together[0], *together[1], *together[2]}) > 6
    )


def test_rows_that_end_early_leave_the_others_as_they_were(model) -> None:
    free = model.generate(PROMPTS, max_new_tokens=24, stop_ids=set())
    stops = {free[0][2], free[2][7]}
    expected = [[*_until(answer, stops)] for answer in free]
    assert model.generate(PROMPTS, max_new_tokens=24, stop_ids=stops) == expected
    words = [model.tokenizer.decode([token]) for token in free[1]]
    stop = next((word for word in words[3:] if word and "\ufffd" not in word), "\n")
    (cut,) = model.generate([PROMPTS[1]], max_new_tokens=24, stop_ids=set(), stop_strings=(stop,))
    matcher = StopMatcher(model.tokenizer, (stop,))
    assert cut == free[1][: next((i for i, t in enumerate(free[1]) if matcher.reached(t)), 24) + 1]


def _until(answer: list[int], stops: set[int]) -> list[int]:
    return answer[: next((i for i, token in enumerate(answer) if token in stops), len(answer))]


def test_logits_and_log_probabilities_are_those_of_transformers(model, theirs, monkeypatch) -> None:
    ids = [*PROMPTS[0], *PROMPTS[1], *PROMPTS[2]]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    assert expected.std() > 0.3
    np.testing.assert_allclose(model.logits(ids), expected.numpy(), atol=TOLERANCE)
    scores = expected[:-1].double().log_softmax(-1)
    scores = scores.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    # chunks of 45, 7 and 1 tokens, shorter and longer than gemma2's window
    for tokens in (len(ids), 20, 7, 1):
        monkeypatch.setattr(transformers_runtime, "LOGITS_BYTES", 4 * 300 * tokens)
        np.testing.assert_allclose(model.log_probs(ids), scores.numpy(), atol=TOLERANCE)
    assert model.log_probs(ids[:1]).shape == (0,)


def test_the_longest_text_is_the_configs_and_answers_end_there(model, folder) -> None:
    named = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    assert model.max_length == (named or UNSAID_LENGTH)
    assert named in (128, None)
    short = TransformersModel(folder, context_length=32)
    (answer,) = short.generate([PROMPTS[0]], max_new_tokens=24, stop_ids=set())
    assert len(answer) == 2
    with pytest.raises(ValueError, match="33 tokens exceed the model's 32"):
        short.logits([3] * 33)
    with pytest.raises(ValueError, match="not all in the vocabulary of 300"):
        short.generate([[300]], max_new_tokens=1, stop_ids=set())


def test_memory_is_what_the_librarys_cache_takes(model, theirs, folder) -> None:
    if AutoConfig.from_pretrained(folder).model_type == "mamba":
        assert model.memory(40).kv_bytes is None
        return
    with torch.no_grad():
        cache = theirs(torch.tensor([[3] * 40]), use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights = sum(weight.nbytes for weight in theirs.parameters())
    table = theirs.get_input_embeddings().weight
    tied = theirs.get_output_embeddings().weight.data_ptr() == table.data_ptr()
    assert model.memory(40).kv_bytes == kept
    assert model.memory(40).step_bytes == weights - (0 if tied else table.nbytes) + kept


OURS = small(
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    initializer_range=0.2,
    qk_norm_weight=True,
)


def test_a_checkpoint_of_ours_answers_alike_in_both(tokenizer, tmp_path, capsys) -> None:
    save_checkpoint(tmp_path, Transformer(OURS), tokenizer)
    ours, stock = open_model(tmp_path), open_model(tmp_path, runtime="transformers")
    assert isinstance(ours, LanguageModel) and isinstance(stock, TransformersModel)
    assert not capsys.readouterr().err  # chosen by the caller: nothing to say
    for sampling in (Sampling(), Sampling(temperature=1.0, top_p=0.95, seed=4)):
        options: dict[str, Any] = {"max_new_tokens": 20, "stop_ids": {7}, "sampling": sampling}
        assert ours.generate(PROMPTS, **options) == stock.generate(PROMPTS, **options)
    np.testing.assert_allclose(
        ours.log_probs(PROMPTS[0]), stock.log_probs(PROMPTS[0]), atol=TOLERANCE
    )
    assert ours.memory(40) == stock.memory(40)
    assert ours.max_length == stock.max_length == 128
    stock.close()
    with pytest.raises(ValueError, match="was closed"):
        stock.logits([3])


def test_what_cannot_be_opened_is_one_line_that_names_the_folder(tokenizer, tmp_path) -> None:
    folder = tmp_path / "neox"
    save_family("gpt_neox", tokenizer, folder)
    with pytest.raises(ValueError, match="runtime 'jax' is unknown; known: pocketlm, transform"):
        open_model(folder, runtime="jax")
    with pytest.raises(ValueError, match="model_type 'gpt_neox' is not read here"):
        open_model(folder, runtime="pocketlm")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="runs in its own runtime"):
        open_model(file, runtime="transformers")

    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("gpt_neox", "nobodys"))
    with pytest.raises(ValueError, match=f"{folder}: transformers cannot open it") as refused:
        open_model(folder)
    assert "\n" not in str(refused.value)
    (folder / "config.json").write_text(
        config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')
    )
    with pytest.raises(ValueError, match="tensors are missing, the first gpt_neox"):
        open_model(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="is a pickle"):
        open_model(folder)


def test_what_the_library_would_compute_otherwise_than_meant_is_refused(
    tokenizer, tmp_path
) -> None:
    four_bits, adapted = tmp_path / "int4", tmp_path / "adapted"
    for folder in (four_bits, adapted):
        folder.mkdir()
    save_checkpoint(four_bits, prepare(Transformer(OURS), SCHEMES["int4_group32"]), tokenizer)
    assert isinstance(open_model(four_bits), LanguageModel)
    with pytest.raises(ValueError, match="trained for int4_group32, and transformers would"):
        open_model(four_bits, runtime="transformers")
    save_family("gpt_neox", tokenizer, adapted)
    (adapted / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge the adapter into its base first"):
        open_model(adapted)


def test_code_in_a_folder_never_runs(tokenizer, tmp_path) -> None:
    save_family("gpt_neox", tokenizer, tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace("gpt_neox", "nobodys").replace(
            "{", '{"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},', 1
        )
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('ran')")
    with pytest.raises(ValueError, match="transformers cannot open it"):
        open_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_streams_in_turns_do_not_disturb_each_other(model) -> None:
    alone = [list(model.stream(prompt, max_new_tokens=8, stop_ids=set())) for prompt in PROMPTS[:2]]
    streams = [model.stream(prompt, max_new_tokens=8, stop_ids=set()) for prompt in PROMPTS[:2]]
    pairs = list(islice(zip(*streams, strict=True), 8))
    assert [list(column) for column in zip(*pairs, strict=True)] == alone


def test_the_commands_take_the_runtime_that_they_are_given(
    tokenizer, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ours", "neox"):
        (tmp_path / name).mkdir()
    save_checkpoint(tmp_path / "ours", Transformer(OURS), tokenizer)
    save_family("gpt_neox", tokenizer, tmp_path / "neox")

    def chat(*words: str) -> str:
        result = CliRunner().invoke(app, ["chat", *words, "--max-tokens", "3"], input="the fox\n")
        assert result.exit_code == 0, result.output
        assert "3 tokens" in result.output
        return result.stderr

    assert "is opened in transformers" in chat("neox")
    assert not chat("neox", "--runtime", "transformers")
    assert not chat("ours") and not chat("ours", "--runtime", "transformers")
    refused = CliRunner().invoke(app, ["chat", "neox", "--runtime", "pocketlm"])
    assert refused.exit_code == 2 and "model_type 'gpt_neox'" in refused.output
    bench = ["bench", "ours", "neox", "--contexts", "20", "--new-tokens", "2", "--repeats", "1"]
    result = CliRunner().invoke(app, [*bench, "--runtime", "transformers", "--json", "speed.json"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "speed.json").read_text())["models"]
    assert rows["neox"]["contexts"]["20"]["kv_bytes"] == 3 * 2 * 20 * 32 * 4
    assert rows["ours"]["contexts"]["20"]["decode_tokens_per_second"] > 0
    assert CliRunner().invoke(app, ["bench", "ours", "--runtime", "jax"]).exit_code == 2
