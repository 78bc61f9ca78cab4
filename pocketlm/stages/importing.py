"""Import: a model from elsewhere as a checkpoint folder that every other stage takes, and stock transformers opens."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.export.gguf_header import read_header
from pocketlm.export.gguf_read import read_gguf
from pocketlm.export.gguf_tokenizer import left_out
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.files import read_json, write_json
from pocketlm.model.layouts import layout_of, native_layout
from pocketlm.model.quant import SCALE, SMALLEST_SCALE, snap
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ["*.json", "*.safetensors", "*.jinja", "LICENSE*"]  # of a hub repository: no pickle, no code
META_LAYOUTS = ("llama4_text", "mobilellm-pro", "mobilellm")
META_LICENCE = (
    "If these are Meta's MobileLLM weights: they are under the FAIR Noncommercial Research License, and so is what is "
    "made from them. The Llama tokenizers have a licence of their own."
)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """source: a checkpoint folder in any layout we read, a .gguf file, or a Hugging Face hub id ("owner/name").

    revision: a branch, tag or commit of the hub repository.
    """

    name: str
    source: str
    revision: str | None = None

    def summary(self) -> str:
        return self.source

    def reads(self) -> list[Path]:
        """The user's own file or folder: when it changes, so does the stage."""
        path = Path(self.source)
        return [path] if path.exists() else []


def import_model(config: ImportConfig, out: Path) -> Path:
    """A checkpoint in `out` that computes what the source computes, and import.json, which says what that was.

    Weights are kept in float32; a .gguf's blocks become the values they stand for. A checkpoint that was trained for
    four bits stays one. Learned scales, Meta's accelerator scheme, become bfloat16 values: import.json tells by how much
    the farthest of them moved: by at most 2^-8 of it, unless it was below the smallest that a grid has.
    """
    model, tokenizer, came = read_source(config)
    save_checkpoint(out, model, tokenizer)
    came["layout"] = native_layout(model.config).name
    came["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    write_json(out / "import.json", came)
    return out


def read_source(config: ImportConfig) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """(model, tokenizer, where they came from)."""
    path = Path(config.source)
    if path.suffix == ".gguf":
        model, tokenizer = read_gguf(path)
        origin: dict[str, Any] = {"from": path.name, "was": "gguf"}
        return model, tokenizer, origin | ({"left_out": notes} if (notes := left_out(read_header(path))) else {})
    if not path.exists() and HUB_ID.fullmatch(config.source):
        path = download(config.source, config.revision)
    elif config.revision is not None:
        raise ValueError(f"{config.name}.revision is for models of the hub; {config.source} is on this machine")
    model, tokenizer = load_checkpoint(path)
    layout = layout_of(read_json(path / "config.json"), path).name
    came: dict[str, Any] = {"from": config.source, "was": layout}
    scales = [parameter.detach() for name, parameter in model.named_parameters() if name.endswith(SCALE)]
    if scales:
        moved = [(snap(scale) - scale).abs() / scale.abs().clamp(min=SMALLEST_SCALE) for scale in scales]
        came["scales_moved"] = max(float(share.max()) for share in moved)
    return model, tokenizer, came | ({"licence": META_LICENCE} if layout in META_LAYOUTS else {})


def download(name: str, revision: str | None) -> Path:
    """The folder in the hub's cache with the repository's weights, configuration and tokenizer; nothing else is fetched."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except Exception as error:  # network, login and hub errors each have their own kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name}: there is no such file or folder here, and the Hugging Face hub did not give it: {first}"
        ) from None
