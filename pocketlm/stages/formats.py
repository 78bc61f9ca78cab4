"""Formats: whether the files that a recipe ends in can be written, asked before it trains
anything.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pocketlm.export.writable import Wanted, refuse_unwritable
from pocketlm.model.checkpoint import quantization_of, shape_of
from pocketlm.model.files import write_json
from pocketlm.model.quant import scheme
from pocketlm.model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class FormatsConfig(Wanted):
    """Wanted's fields are those of the export to come. scheme: the four-bit one that the model will
    be trained for; None for what it is.
    """

    name: str
    scheme: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme is not None:
            scheme(self.scheme)  # an unknown one is named

    def summary(self) -> str:
        return ", ".join(self.formats)


def check_formats(config: FormatsConfig, out: Path, *, model: Path) -> Path:
    """`out`, with formats.json: of each format what is unlike in it. ValueError for one that cannot
    be written.
    """
    chosen = config.scheme or quantization_of(model)
    kept = scheme(chosen) if chosen else None
    shape = shape_of(model)
    tokenizer = Tokenizer.load(model)
    try:
        notes = refuse_unwritable(config, shape, tokenizer, kept)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
    console = Console(stderr=True, highlight=False)
    for note in (note for lines in notes.values() for note in lines):
        console.print(f"  {config.name}: {note}", style="yellow", soft_wrap=True, markup=False)
    details = {
        "gguf": {"dtype": config.dtype(kept)},
        "pte": {"context_length": config.context_length or shape.max_position_embeddings},
        "hf": {"layout": config.layout},
    }
    record = {
        name: {**details.get(name, {}), "quantization": chosen, "unlike": lines}
        for name, lines in notes.items()
    }
    write_json(out / "formats.json", record)
    return out
