"""The bytes a token stands for, which need not be whole characters."""

import re
from functools import cache, lru_cache

from pocketlm.model.tokenizer import Tokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's name of a byte without a word


@lru_cache(maxsize=1 << 16)
def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of one token; b"" for an id that the tokenizer does not use."""
    name = tokenizer.backend.id_to_token(token)
    if name is None:
        return b""
    added = tokenizer.backend.get_added_tokens_decoder()
    if token in added:
        return added[token].content.encode()
    if match := BYTE.fullmatch(name):
        return bytes([int(match[1], 16)])
    values = byte_values()
    if decodes_bytes(tokenizer) and all(character in values for character in name):
        return bytes(values[character] for character in name)
    return name.replace("▁", " ").encode()


@lru_cache(maxsize=8)
def decodes_bytes(tokenizer: Tokenizer) -> bool:
    """Whether its words are written in GPT-2's alphabet, a character for each byte."""
    decoder = tokenizer.backend.decoder
    return decoder is not None and b"ByteLevel" in decoder.__getstate__()


@cache
def byte_values() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet (Radford et al. 2019): printable ones stand
    for themselves, the others for the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    values = {chr(value): value for value in printable}
    return values | {chr(256 + number): value for number, value in enumerate(others)}
