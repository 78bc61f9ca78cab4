"""The scripts of examples/ do their jobs, with a base of random weights in place of a real one."""

import importlib.util
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from shapes import small

from pocketlm.inference.llamacpp import GgufModel
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    trained = train_tokenizer(["a question and an answer about the weather, 1 + 2 " * 30], 280)
    shape = small(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    shape = replace(shape, max_position_embeddings=128)
    save_checkpoint(folder, Transformer(shape), Tokenizer(trained.backend, chat_template=CHATML))
    return folder


def test_talk_prints_an_answer_a_stream_and_how_likely_the_question_is(
    base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    example("talk").main(str(base), "1 + 2?")
    said = capfd.readouterr().out
    assert re.search(r"\n\d+ tokens, -\d+\.\d\d nats each on average\n$", said), said


def test_chats_become_a_file_and_the_same_call_again_does_nothing(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"What is {i} + {i}?", "response": f"{2 * i}"} for i in range(20)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ship, out = example("finetune_and_ship"), tmp_path / "run"
    # an almost untrained model is unsure of every token
    options = {"steps": 2, "context": 64, "min_agreement": 0.5}
    file = ship.main(base, chats, out, **options)
    with closing(GgufModel(file)) as model:
        assert len(model.generate([[1, 2, 3]], max_new_tokens=2, stop_ids=set())[0]) == 2
    written = file.stat().st_mtime_ns
    capfd.readouterr()
    assert ship.main(base, chats, out, **options).stat().st_mtime_ns == written
    assert capfd.readouterr().err.count("done before") == 4


def test_a_study_measures_three_mixes_of_ones_own_folders(tmp_path: Path) -> None:
    random, domains = Random(0), {"notes": "maths", "days": "knowledge"}
    for name in domains:
        (tmp_path / name).mkdir()
        words = ["".join(random.choices("abcdefghilmnoprstu", k=5)) for _ in range(400)]
        for number in range(80):
            lines = [" ".join(random.choices(words, k=12)).capitalize() + "." for _ in range(12)]
            (tmp_path / name / f"{number}.txt").write_text("\n".join(lines))
    study = example("mix_study")
    proxy = small(vocab_size=300, max_position_embeddings=32)
    sources = [(domain, tmp_path / name) for name, domain in domains.items()]
    mixes = study.main(sources, tmp_path / "run", steps=10, proxy=proxy)
    assert set(mixes) == {"by size", "equal", "utility"}
    assert mixes["equal"]["shares"] == {"notes": 0.5, "days": 0.5}
    assert all(mix["bits_per_byte"]["mean"] > 0 for mix in mixes.values())


@pytest.mark.parametrize("name", ["talk", "finetune_and_ship", "mix_study"])
def test_an_example_without_arguments_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    with pytest.raises(SystemExit, match=f"python examples/{name}.py"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
