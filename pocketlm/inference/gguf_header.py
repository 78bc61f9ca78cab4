"""What a .gguf says of its language model: checked before llama.cpp sees the file."""

import math
from pathlib import Path

import gguf

from pocketlm.inference.gguf_file import GgufHeader, read_whole

ARCHITECTURES = ("llama", "gemma3", "qwen2", "qwen3", "smollm3", "step35")  # what write_gguf writes


def read_header(path: Path) -> GgufHeader:
    """The header of a .gguf file, or of all parts of a split one, whichever of them is given.

    FileNotFoundError where there is none; ValueError for what is no GGUF, truncated, another
    architecture, or a part that is missing or belongs elsewhere.
    """
    header = read_whole(Path(path))
    _check(header)
    return header


def head_width(header: GgufHeader) -> int:
    """Channels of one attention head: the key_length, or the hidden size divided by the heads."""
    shared = header.integer("{arch}.embedding_length") // header.integer(
        "{arch}.attention.head_count"
    )
    return header.integer("{arch}.attention.key_length", shared)


def windows_of(header: GgufHeader) -> list[int | None]:
    """For each layer the window of its attention, None where it sees all."""
    layers = header.integer("{arch}.block_count")
    if header["general.architecture"] == "gemma3":
        window = header.integer("{arch}.attention.sliding_window")
        return [window if (layer + 1) % 6 else None for layer in range(layers)]
    if header["general.architecture"] != "step35":
        return [None] * layers
    pattern = header.array("{arch}.attention.sliding_window_pattern", (bool, int))
    if len(pattern) < layers:
        raise ValueError(
            f"{header.path}: {len(pattern)} layers are said to be local or global, there are "
            f"{layers}"
        )
    window = header.integer("{arch}.attention.sliding_window")
    return [window if is_local else None for is_local in pattern[:layers]]


def weight_bytes(header: GgufHeader) -> int:
    """Bytes of all weights that every token reads: all tensors, but a token table that is not the
    head too.
    """
    unread = {"token_embd.weight"} if "output.weight" in header.tensors else set()
    layouts = (row_layout(header, name) for name in header.tensors.keys() - unread)
    return sum(rows * row_bytes for rows, row_bytes in layouts)


def row_layout(header: GgufHeader, name: str) -> tuple[int, int]:
    """(rows, bytes of one row) of a tensor as the file holds it; ValueError for a type of number
    not known here.
    """
    shape, (number, _) = header.tensors[name], header.places[name]
    try:
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    except (ValueError, KeyError):
        raise ValueError(
            f"{header.path}: {name} has ggml type {number}, which is not read here"
        ) from None
    if shape[-1] % per_block:
        raise ValueError(
            f"{header.path}: {name} has rows of {shape[-1]}, no whole blocks of {per_block}"
        )
    return math.prod(shape[:-1]), shape[-1] // per_block * block_bytes


def _check(header: GgufHeader) -> None:
    """Refuse what llama.cpp would compute otherwise than we do, or stop the process over."""
    path, kind = header.path, header["general.architecture"]
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{path} is a {kind!r} model; only what pocketlm writes is opened: "
            f"{', '.join(ARCHITECTURES)}"
        )
    heads, kv_heads = (
        header["{arch}.attention.head_count"],
        header["{arch}.attention.head_count_kv"],
    )
    if (
        not isinstance(heads, int)
        or not isinstance(kv_heads, int)
        or min(heads, kv_heads) < 1
        or heads % kv_heads
    ):
        raise ValueError(f"{path}: {heads} heads do not share {kv_heads} key-value heads")
    width = head_width(header)
    turned = header.integer("{arch}.rope.dimension_count", width * (2 if kind == "step35" else 1))
    turned //= 2 if kind == "step35" else 1
    if width != header.integer("{arch}.attention.value_length", width) or turned != width:
        raise ValueError(f"{path}: key, value and rotary widths differ; no model of ours has that")
    _check_sizes(header, width)


def _check_sizes(header: GgufHeader, width: int) -> None:
    """Refuse keys that give another size than the tensors have, before a network of that size takes
    its memory.
    """
    hidden, inner = (
        header.integer("{arch}.embedding_length"),
        header.integer("{arch}.feed_forward_length"),
    )
    heads, kv_heads = (
        header["{arch}.attention.head_count"],
        header["{arch}.attention.head_count_kv"],
    )
    table = header.tensors.get("token_embd.weight", ())
    expected = {
        "token_embd.weight": (table[0] if len(table) == 2 else 0, hidden),
        "blk.0.attn_q.weight": (heads * width, hidden),
        "blk.0.attn_k.weight": (kv_heads * width, hidden),
        "blk.0.ffn_down.weight": (hidden, inner),
    }
    for name, shape in expected.items():
        actual = header.tensors.get(name)
        if actual is None:
            raise ValueError(
                f"{header.path}: the tensor {name} is missing; the file is not a language model of "
                "ours"
            )
        if actual != shape:
            raise ValueError(
                f"{header.path}: {name} is {actual}, and by the file's keys it should be {shape}"
            )
    layers = header.integer("{arch}.block_count")
    if f"blk.{layers - 1}.attn_q.weight" not in header.tensors:
        raise ValueError(
            f"{header.path}: block_count is {layers}, but blk.{layers - 1}.attn_q.weight is missing"
        )
