"""Whether the formats asked for can hold a model: by its shape and tokenizer alone, before anything
trains; and by its weights, where a format would round them again.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketlm.export import gguf, packed_folders
from pocketlm.export.gguf_vocab_file import vocabulary_file
from pocketlm.export.plain import dequantized_model
from pocketlm.export.text_agreement import refuse_other_text
from pocketlm.model.grid_check import refuse_rounding_again
from pocketlm.model.layouts import LAYOUTS
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import CPU, Scheme, fake_quantize_weight, scheme_of
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

FORMATS = ("hf", "gguf", "pte", *packed_folders.CONTAINERS)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """formats: of FORMATS. gguf_dtype: None for q4_0 where the model is in four bits, else f16.
    context_length: of a .pte; None for the model's positions. layout: of the Hugging Face folder;
    None for the one that stock transformers opens.
    """

    formats: tuple[str, ...]
    gguf_dtype: str | None = None
    context_length: int | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f"formats names {name!r}; known: {', '.join(FORMATS)}")
        if not self.formats:
            raise ValueError(f"formats names none; known: {', '.join(FORMATS)}")
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length {self.context_length} must be at least 1")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is unknown; known: {', '.join(LAYOUTS)}")

    def dtype(self, scheme: Scheme | None) -> str:
        """The numbers of the .gguf."""
        return self.gguf_dtype or ("q4_0" if scheme else "f16")


def refuse_unwritable(
    wanted: Wanted, config: ModelConfig, tokenizer: Tokenizer, scheme: Scheme | None
) -> dict[str, list[str]]:
    """For each format what is unlike in it and cannot be helped, in words.

    ValueError for the first format that cannot hold a model of this shape, tokenizer and scheme, or
    whose runtime is not installed here: the file could not be compared with the model.
    """
    length = wanted.context_length or config.max_position_embeddings
    if length > config.max_position_embeddings:
        raise ValueError(
            f"context_length {length} exceeds the model's {config.max_position_embeddings} "
            "positions"
        )
    notes: dict[str, list[str]] = {}
    for name in wanted.formats:
        notes[name] = []
        if name == "gguf":
            gguf.refuse_unwritable(config, tokenizer, scheme, wanted.dtype(scheme))
            with vocabulary_file(tokenizer, config.vocab_size) as file:
                notes[name] = refuse_other_text(file, tokenizer, config.vocab_size)
        elif name == "pte":
            from pocketlm.export import pte

            pte.refuse_unwritable(config, scheme, length)
        elif name == "hf":
            _refuse_layout(config, wanted.layout)
        else:
            packed_folders.refuse_unwritable(config, scheme, name)
    return notes


def refuse_lossy(network: Transformer, dtype: str) -> None:
    """Nothing, or a ValueError where a .gguf of this dtype would round four-bit values once more,
    and otherwise.
    """
    if dtype == "q4_0" and scheme_of(network) is None:
        refuse_rounding_again(network, partial(fake_quantize_weight, scheme=CPU), "q4_0")
    if dtype == "q8_0":
        refuse_rounding_again(dequantized_model(network), gguf.rounded_q8_0, "q8_0")


def _refuse_layout(config: ModelConfig, layout: str | None) -> None:
    """The layout that stock transformers opens is there for every shape, once shared blocks are
    unrolled.
    """
    if layout is not None:
        LAYOUTS[layout].config_fields(config)


def cache_note(file: Path, scheme: Scheme | None) -> list[str]:
    """What a .gguf cannot say of a model that was trained for an int8 cache."""
    if file.suffix != ".gguf" or scheme is None or not scheme.int8_cache:
        return []
    return [
        "trained for an int8 cache of keys and values, which is no field of a .gguf: llama.cpp "
        "rounds them, in blocks of 32, with -ctk q8_0 -ctv q8_0 -fa on"
    ]
