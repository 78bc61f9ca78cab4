"""Chats: whether a model can learn the conversations of a corpus, asked before anything else
trains.
"""

from dataclasses import dataclass
from pathlib import Path

from pocketlm.data.conversations import (
    Limits,
    Tally,
    TooLong,
    conversation_files,
    learnable_pairs,
    report_tally,
)
from pocketlm.model.tokenizer import Tokenizer, teach_chat_template


@dataclass(frozen=True, kw_only=True)
class ChatsConfig:
    """seq_len, too_long: of the training to come. sources: the corpus's that hold conversations;
    empty means all that do.
    """

    name: str
    seq_len: int
    sources: tuple[str, ...] = ()
    too_long: TooLong = "drop"

    def __post_init__(self) -> None:
        self.limits()

    def limits(self) -> Limits:
        return Limits(seq_len=self.seq_len, too_long=self.too_long)

    def summary(self) -> str:
        return f"at most {self.seq_len:,} tokens"


def check_chats(config: ChatsConfig, out: Path, *, corpus: Path, model: Path) -> Path:
    """`out`, with conversations.json: what a fine-tuning of `model` would learn, and what it would
    leave out and why.

    ValueError where it would learn nothing. The answers end where its chat template ends them; a
    base model's is the one that fine-tuning gives it.
    """
    tokenizer = Tokenizer.load(model)
    teach_chat_template(tokenizer)
    files, tally = conversation_files(corpus, config.sources), Tally()
    for _ in learnable_pairs(files, tokenizer, config.limits(), tally):
        pass  # counted alone
    report_tally(tally, tokenizer, out, config.name)
    return out
