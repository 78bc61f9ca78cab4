"""`from pocketlm import load`: a model in Python, in a few lines."""

import subprocess
import sys
from pathlib import Path

import pytest
from shapes import small

from pocketlm import load
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.stop_strings import before_stop
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.hub_folder import model_at
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from tests.unit.hub_server import hub_server


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = train_tokenizer(["a banana and a bandana, user assistant"] * 4, 280)
    return Tokenizer(trained.backend, chat_template=CHATML)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    network = Transformer(small(vocab_size=280, initializer_range=0.3), seed=3)
    save_checkpoint(folder, network, tokenizer)
    return folder


def test_it_chats_and_goes_on_with_a_text(folder: Path, tokenizer: Tokenizer) -> None:
    runtime = LanguageModel.open(folder)
    question = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.encode_chat(question)
    drawn = Sampling(temperature=0.8, seed=4)
    (ids,) = runtime.generate(
        [prompt], max_new_tokens=9, stop_ids=tokenizer.stop_ids, sampling=drawn
    )
    with load(folder) as model:
        options = {"max_tokens": 9, "temperature": 0.8, "seed": 4}
        assert (
            model.chat("hi", **options) == tokenizer.decode(ids) == model.chat(question, **options)
        )
        pieces = list(model.chat("hi", stream=True, **options))
        assert len(pieces) > 1 and "".join(pieces) == tokenizer.decode(ids)
        whole = model.generate("a banana", max_tokens=9)
        start = [*tokenizer.document_start, *tokenizer.encode("a banana")]
        (ids,) = runtime.generate([start], max_new_tokens=9, stop_ids=tokenizer.stop_ids)
        assert whole == tokenizer.decode(ids)
        assert model.generate("a banana", max_tokens=9, stop=[whole[2:4]]) == (
            before_stop(whole, [whole[2:4]])
        )


def test_a_text_is_scored_token_by_token(folder: Path, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.document_start, *tokenizer.encode("a banana")]
    expected = LanguageModel.open(folder).log_probs(ids)
    with load(str(folder)) as model:
        scores = model.log_probs("a banana")
    assert "".join(text for text, _ in scores) == "a banana"
    assert [value for _, value in scores] == pytest.approx(expected.tolist())


def test_mistakes_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model at"):
        load(tmp_path / "none.gguf")
    with load(folder) as model:
        with pytest.raises(ValueError, match=r"tokens, and the model reads 64"):
            model.chat("a banana " * 50)
        with pytest.raises(ValueError, match="temperature -1 is below 0"):
            model.generate("a", temperature=-1)


def test_the_command_s_help_does_not_pay_for_it() -> None:
    code = "import pocketlm, sys; assert 'torch' not in sys.modules; pocketlm.load; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
    import pocketlm

    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = pocketlm.lode  # type: ignore[attr-defined]


def test_a_model_of_the_hub_is_fetched_once(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "me/tiny"
    with hub_server(monkeypatch, tmp_path / "cache") as hub:
        hub[name] = {file.name: file.read_bytes() for file in folder.iterdir()}
        hub[name] |= {"onnx/model.safetensors": b"x", "old.bin": b"x", "q4.gguf": b"x"}
        with load(name) as model:
            answer = model.generate("ab", max_tokens=4)
        snapshot = model_at(name)
        hub["me/files"] = {"a.gguf": b"GGUF", "model.tokenizer/x.json": b"{}", "old.bin": b"x"}
        assert model_at("me/files").read_bytes() == b"GGUF"
        hub["me/two"] = {"a.gguf": b"GGUF", "b.gguf": b"GGUF"}
        with pytest.raises(ValueError, match=r"fetch one: `pocketlm pull me/two a\.gguf`"):
            load("me/two")
    with load(folder) as model:
        assert answer == model.generate("ab", max_tokens=4)
    assert {file.name for file in snapshot.iterdir()} == {file.name for file in folder.iterdir()}
    assert model_at(name) == snapshot  # the hub is gone
    assert "the copy fetched earlier is used" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the Hugging Face hub did not give it"):
        load("me/never")
