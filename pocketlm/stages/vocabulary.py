"""Vocabulary: whether a teacher's words are the corpus's and it reads far enough, asked before
anything trains: a phase with a teacher may come days after the first.
"""

from dataclasses import dataclass
from pathlib import Path

from pocketlm.model.files import write_json
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.train.distill.cache import open_cache
from pocketlm.train.distill.teacher import check_cache, check_teacher, is_cached, network_shape


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """tokenizer: the folder of the one that corpora are encoded with. window: the most tokens that
    the teacher will read at once.
    """

    name: str
    tokenizer: str
    window: int

    def summary(self) -> str:
        return f"the words of {self.tokenizer}, {self.window:,} tokens at once"

    def reads(self) -> list[Path]:
        """The user's own files this stage reads."""
        return [Path(self.tokenizer).expanduser()]


def check_vocabulary(config: VocabularyConfig, out: Path, *, teacher: Path) -> Path:
    """`out`, with vocabulary.json: tokens and positions of the teacher. Its weights are not read.

    ValueError where its words are not the tokenizer's, or it reads less than config.window.
    """
    tokenizer = Tokenizer.load(Path(config.tokenizer).expanduser())
    if is_cached(teacher):
        cache = open_cache(teacher)
        check_cache(cache, tokenizer, {})
        positions = cache.made_of["window"]
    else:
        check_teacher(tokenizer, Tokenizer.load(teacher))
        positions = network_shape(teacher).max_position_embeddings
    if positions < config.window:
        raise ValueError(
            f"the teacher {teacher} reads {positions:,} tokens, {config.name}.window asks for "
            f"{config.window:,}; take one that reads further"
        )
    write_json(out / "vocabulary.json", {"tokens": tokenizer.vocab_size, "positions": positions})
    return out
