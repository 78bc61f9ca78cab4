"""What a .gguf file says of itself, and its tokenizer: read before llama.cpp sees the file.

llama.cpp stops the whole process on some broken files, and the `gguf` package's reader takes 10 s for the
header of a 128k vocabulary (this one 0.5 s).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from pocketlm.export.gguf import CONTROL, DIGITS, SPLITS, USER_DEFINED
from pocketlm.model.tokenizer import Tokenizer

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # GGUF type -> struct's
ARCHITECTURES = ("llama", "qwen3", "step35")  # what write_gguf writes
IGNORES_MERGES = ("llama-bpe",)  # llama.cpp takes a whole word that is a token as that token under this rule only


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """All of a file but its numbers. `tensors`: name -> shape, outputs first; `places`: name -> ggml's type and the byte."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    places: dict[str, tuple[int, int]]

    def __getitem__(self, key: str) -> Any:
        """The value of a key, `{arch}` standing for the architecture; a missing key is a ValueError."""
        key = key.replace("{arch}", str(self.metadata.get("general.architecture")))
        if key not in self.metadata:
            raise ValueError(f"{self.path}: key {key} is missing; the file is not a language model of ours")
        return self.metadata[key]


def read_header(path: Path) -> GgufHeader:
    """The header of a .gguf file.

    FileNotFoundError where there is none; ValueError for what is no GGUF, truncated, or another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no .gguf file at {path}")
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not start with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                header = _parse(path, content)
            except (struct.error, UnicodeDecodeError, OverflowError, MemoryError):
                raise ValueError(
                    f"{path}: the GGUF header is truncated or damaged; write or fetch the file again"
                ) from None
    _check(header)
    return header


def head_width(header: GgufHeader) -> int:
    """Channels of one attention head: told, or the hidden size shared among the heads."""
    kind, heads = header["general.architecture"], header["{arch}.attention.head_count"]
    return header.metadata.get(f"{kind}.attention.key_length", header["{arch}.embedding_length"] // heads)


def windows_of(header: GgufHeader) -> list[int | None]:
    """For each layer the window of its attention, None where it sees all."""
    layers = header["{arch}.block_count"]
    if header["general.architecture"] != "step35":
        return [None] * layers
    pattern, window = header["{arch}.attention.sliding_window_pattern"], header["{arch}.attention.sliding_window"]
    return [window if is_local else None for is_local in pattern[:layers]]


def weight_bytes(header: GgufHeader) -> int:
    """Bytes of all weights that every token reads: all tensors, but a token table that is not the head too."""
    unread = {"token_embd.weight"} if "output.weight" in header.tensors else set()
    layouts = (row_layout(header, name) for name in header.tensors.keys() - unread)
    return sum(rows * row_bytes for rows, row_bytes in layouts)


def row_layout(header: GgufHeader, name: str) -> tuple[int, int]:
    """(rows, bytes of one row) of a tensor as the file holds it; ValueError for a type of number not known here."""
    shape, (number, _) = header.tensors[name], header.places[name]
    try:
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    except (ValueError, KeyError):
        raise ValueError(f"{header.path}: {name} has ggml type {number}, which is not read here") from None
    if shape[-1] % per_block:
        raise ValueError(f"{header.path}: {name} has rows of {shape[-1]}, no whole blocks of {per_block}")
    return math.prod(shape[:-1]), shape[-1] // per_block * block_bytes


def tokenizer_of(header: GgufHeader) -> Tokenizer:
    """The tokenizer a file carries: the same ids for the same text as the one it was written from."""
    path = header.path
    kind, pre = header["tokenizer.ggml.model"], header["tokenizer.ggml.pre"]
    if kind != "gpt2" or pre not in (DIGITS, *SPLITS):
        raise ValueError(
            f"{path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not read here; "
            f"known: gpt2 with {DIGITS}, {', '.join(SPLITS)}"
        )
    tokens, token_types = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in header["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(token_types) != len(tokens):
        raise ValueError(f"{path}: the vocabulary is damaged (a token twice, or not one type for each token)")
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in IGNORES_MERGES))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: the merges do not fit the vocabulary ({error})") from None
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    for special, number in ((True, CONTROL), (False, USER_DEFINED)):
        chosen = [t for t, kind in zip(tokens, token_types, strict=True) if kind == number]
        backend.add_tokens([AddedToken(t, special=special, normalized=False) for t in chosen])
    bos, eos = (header[f"tokenizer.ggml.{which}_token_id"] for which in ("bos", "eos"))
    turn_end = header.metadata.get("tokenizer.ggml.eot_token_id", eos)
    if max(bos, eos, turn_end) >= len(tokens):
        raise ValueError(f"{path}: a special token's id is beyond the vocabulary of {len(tokens)}")
    return Tokenizer(
        backend,
        bos_token=tokens[bos],
        eos_token=tokens[eos],
        end_of_turn_token=tokens[turn_end],
        chat_template=header.metadata.get("tokenizer.chat_template"),
    )


def _pre_tokenizer(name: str) -> pre_tokenizers.Sequence:
    if name == DIGITS:
        first, byte_level = pre_tokenizers.Digits(individual_digits=True), True
    else:
        first, byte_level = pre_tokenizers.Split(Regex(SPLITS[name]), "isolated"), False
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=byte_level)])


def _check(header: GgufHeader) -> None:
    """Refuse what llama.cpp would compute otherwise than we do, or stop the process over."""
    path, kind = header.path, header["general.architecture"]
    if kind not in ARCHITECTURES:
        raise ValueError(f"{path} is a {kind!r} model; only what pocketlm writes is opened: {', '.join(ARCHITECTURES)}")
    heads, kv_heads = header["{arch}.attention.head_count"], header["{arch}.attention.head_count_kv"]
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or not kv_heads or heads % kv_heads:
        raise ValueError(f"{path}: {heads} heads do not share {kv_heads} key-value heads")
    width = head_width(header)
    turned = header.metadata.get(f"{kind}.rope.dimension_count", width) // (2 if kind == "step35" else 1)
    if width != header.metadata.get(f"{kind}.attention.value_length", width) or turned != width:
        raise ValueError(f"{path}: key, value and rotary widths differ; no model of ours has that")
    if "token_embd.weight" not in header.tensors:
        raise ValueError(f"{path}: the tensor token_embd.weight is missing; the file is not a language model of ours")


class _Reader:
    """Values one after the other; reading past the end is a struct.error."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.content, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.number("Q")
        text = self.content[self.at : self.at + size]
        if len(text) != size:
            raise struct.error("a string beyond the end")
        self.at += size
        return text.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in NUMBERS:
            raise struct.error(f"type {kind}")
        return self.number(NUMBERS[kind])

    def array(self, kind: int, size: int) -> list[Any]:
        if size > len(self.content):
            raise struct.error("an array beyond the end")
        if kind not in NUMBERS:
            return [self.value(kind) for _ in range(size)]
        layout = f"<{size}{NUMBERS[kind]}"
        values = struct.unpack_from(layout, self.content, self.at)
        self.at += struct.calcsize(layout)
        return list(values)


def _parse(path: Path, content: mmap.mmap) -> GgufHeader:
    reader = _Reader(content)
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}; known are 2 and 3, little-endian")
    num_tensors, num_keys = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(num_keys):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    tensors, places = {}, {}
    for _ in range(num_tensors):
        name = reader.string()
        tensors[name] = tuple(reversed(reader.array(10, reader.number("I"))))
        places[name] = reader.number("I"), reader.number("Q")
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    places = {name: (kind, start + offset) for name, (kind, offset) in places.items()}
    return GgufHeader(path=path, metadata=metadata, tensors=tensors, places=places)
