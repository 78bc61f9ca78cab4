"""Write a tokenizer's vocabulary into a .gguf, with its weights or alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf

from pocketlm.export.gguf_vocab import Vocabulary, vocabulary_of
from pocketlm.inference.gguf_stop_tokens import ends_by_text
from pocketlm.inference.gguf_tokens import BYTE_LEVEL
from pocketlm.model.tokenizer import Tokenizer


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Everything that turns text into ids: a .gguf on its own is enough."""
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == BYTE_LEVEL:
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if vocabulary.unknown_id is not None:
        writer.add_unk_token_id(vocabulary.unknown_id)
    eos, turn_end, *further = end_ids(tokenizer, vocabulary.tokens)
    writer.add_eos_token_id(eos)
    writer.add_eot_token_id(turn_end)
    if further:
        writer.add_eom_token_id(further[0])
    writer.add_pad_token_id(eos)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


@contextmanager
def vocabulary_file(tokenizer: Tokenizer, vocab_size: int) -> Iterator[Path]:
    """A .gguf of a tokenizer and no weights, for as long as it is asked about."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(None, "llama")
        for add in (
            writer.add_context_length,
            writer.add_embedding_length,
            writer.add_feed_forward_length,
        ):
            add(32)
        for add in (writer.add_block_count, writer.add_head_count):
            add(1)
        writer.add_layer_norm_rms_eps(1e-5)
        add_vocabulary(writer, tokenizer, vocabulary_of(tokenizer, vocab_size))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        yield path


def end_ids(tokenizer: Tokenizer, tokens: list[str]) -> list[int]:
    """The end of text, the end of a turn, then each other end that llama.cpp does not know by its
    text.

    A .gguf has a key for the first three.
    """
    first = [tokenizer.eos_id, tokenizer.end_of_turn_id]
    known = ends_by_text(tokens) | set(first)
    return first + sorted(tokenizer.stop_ids - known)
