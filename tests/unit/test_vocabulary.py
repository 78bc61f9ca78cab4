"""A teacher's words and window are compared before anything trains; its weights are not needed."""

from dataclasses import replace
from pathlib import Path

import pytest

from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.files import read_json
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.rehearsal.stand_ins import SHAPE
from pocketlm.stages.vocabulary import VocabularyConfig, check_vocabulary

TEXT = ["the water of the river carries the stone to the garden"] * 3


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A checkpoint of 64 positions without its weights, its vocabulary padded."""
    (tmp_path / "teacher").mkdir()
    save_checkpoint(tmp_path / "teacher", Transformer(SHAPE), train_tokenizer(TEXT, 270))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    return tmp_path / "teacher"


def test_a_teacher_of_the_same_words_that_reads_far_enough_is_taken(teacher: Path) -> None:
    config = VocabularyConfig(name="words", tokenizer=str(teacher), window=64)
    (teacher.parent / "out").mkdir()
    out = check_vocabulary(config, teacher.parent / "out", teacher=teacher)
    assert read_json(out / "vocabulary.json") == {"tokens": 270, "positions": 64}
    with pytest.raises(ValueError, match=r"reads 64 tokens, words\.window asks for 65"):
        check_vocabulary(replace(config, window=65), out, teacher=teacher)


def test_a_teacher_of_other_words_is_refused(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    train_tokenizer(["quite another text, about numbers: 1 2 3"], 270).save(tmp_path / "own")
    config = VocabularyConfig(name="words", tokenizer=str(tmp_path / "own"), window=64)
    with pytest.raises(ValueError, match="teacher and student have different vocabularies"):
        check_vocabulary(config, tmp_path, teacher=teacher)
