"""Import: a model from elsewhere as a checkpoint folder that every other stage takes, and stock
transformers opens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.export.import_gguf import read_gguf
from pocketlm.inference.gguf_header import read_header
from pocketlm.inference.gguf_tokenizer import left_out
from pocketlm.model.adapters import read_adapter
from pocketlm.model.checkpoint import load_adapted, load_checkpoint, raw_config, save_checkpoint
from pocketlm.model.config_fields import unused_fields
from pocketlm.model.files import write_json
from pocketlm.model.hub import HUB_ID, download
from pocketlm.model.layouts import layout_of, native_layout
from pocketlm.model.quant import SCALE, SMALLEST_SCALE, round_scale_to_bfloat16
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.tokenizer_files import FILES
from pocketlm.model.transformer import Transformer
from pocketlm.model.weights import ADAPTER_CONFIG, INDEX, WEIGHTS, unread_weights, weight_files

WANTED = [
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "LICENSE*",
]  # of a hub repository beside weights: no pickle, no code
META_LAYOUTS = ("llama4_text", "mobilellm-pro", "mobilellm")
META_LICENCE = (
    "If these are Meta's MobileLLM weights: they are under the FAIR Noncommercial Research "
    "License, and so is what is "
    "made from them. The Llama tokenizers have a licence of their own."
)
TOKENIZER_FILES = (
    *(
        *FILES,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
    ),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)
TEMPLATES = "additional_chat_templates/"
NOT_OURS = "no part of the model as it is read here"


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """source: a checkpoint folder in any layout we read, a LoRA adapter, a .gguf file, or a hub id
    ("owner/name").

    revision: a branch, tag or commit of the hub repository. base: the model that an adapter was
    made for, a folder or hub id, where its adapter_config.json does not lead there.
    """

    name: str
    source: str
    revision: str | None = None
    base: str | None = None

    def summary(self) -> str:
        return f"{self.source} on {self.base}" if self.base else self.source

    def reads(self) -> list[Path]:
        """The user's own files or folders: when they change, so does the stage."""
        return [
            path
            for path in (Path(self.source), *([Path(self.base)] if self.base else []))
            if path.exists()
        ]


def import_model(config: ImportConfig, out: Path) -> Path:
    """A checkpoint in `out` that computes what the source computes, and import.json, which says
    what that was.

    Weights are kept in float32; a .gguf's blocks become the values they stand for. A checkpoint
    that was trained for four bits stays one. Learned scales, Meta's accelerator scheme, become
    bfloat16 values: import.json tells by how much the farthest of them moved: by at most 2^-8 of
    it, unless it was below the smallest that a grid has.
    """
    model, tokenizer, came = read_source(config)
    save_checkpoint(out, model, tokenizer)
    came["layout"] = native_layout(model.config).name
    came["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    write_json(out / "import.json", came | described_tokenizer(tokenizer))
    return out


def read_source(config: ImportConfig) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """(model, tokenizer, where they came from and what was not used)."""
    path = Path(config.source)
    if path.suffix == ".gguf":
        _refuse_base(config)
        model, tokenizer = read_gguf(path)
        origin: dict[str, Any] = {"from": path.name, "was": "gguf"}
        return (
            model,
            tokenizer,
            origin | ({"left_out": notes} if (notes := left_out(read_header(path))) else {}),
        )
    if path.exists() and config.revision is not None:
        raise ValueError(
            f"{config.name}.revision is for models of the hub; {config.source} is on this machine"
        )
    path = _resolved(config.source, config.revision)
    came: dict[str, Any] = {"from": config.source}
    if (path / ADAPTER_CONFIG).is_file():
        model, tokenizer, path = _read_adapted(config, path, came)
    else:
        _refuse_base(config)
        model, tokenizer = load_checkpoint(path)
    raw = raw_config(path)
    came["was"] = layout_of(raw).name
    scales = [
        parameter.detach() for name, parameter in model.named_parameters() if name.endswith(SCALE)
    ]
    if scales:
        moved = [
            (round_scale_to_bfloat16(scale) - scale).abs() / scale.abs().clamp(min=SMALLEST_SCALE)
            for scale in scales
        ]
        came["scales_moved"] = max(float(share.max()) for share in moved)
    came |= {"unused_fields": unused_fields(raw, came["was"]), "unused_files": unused_files(path)}
    return (
        model,
        tokenizer,
        came | ({"licence": META_LICENCE} if came["was"] in META_LAYOUTS else {}),
    )


def _refuse_base(config: ImportConfig) -> None:
    if config.base is not None:
        raise ValueError(
            f"{config.name}.base is for adapters; {config.source} holds no {ADAPTER_CONFIG}"
        )


def _resolved(source: str, revision: str | None = None) -> Path:
    """The folder of a model: on this machine, or fetched from the hub."""
    path = Path(source)
    return (
        download(source, revision, WANTED)
        if not path.exists() and HUB_ID.fullmatch(source)
        else path
    )


def _read_adapted(
    config: ImportConfig, path: Path, came: dict[str, Any]
) -> tuple[Transformer, Tokenizer, Path]:
    """(model with the adapter merged, tokenizer, the folder of the model beneath). Fills
    came["adapter"].

    Beneath is `base` where it is given, else the weights beside the adapter, else the model that
    adapter_config.json names: transformers with peft takes them in that order.
    """
    adapter = read_adapter(path)
    if config.base is not None:
        base, name = _resolved(config.base), config.base
    elif (path / "config.json").is_file() and (
        (path / WEIGHTS).is_file() or (path / INDEX).is_file()
    ):
        base, name = path, "the weights beside it"
    elif adapter.base and (Path(adapter.base).exists() or HUB_ID.fullmatch(adapter.base)):
        base, name = _resolved(adapter.base), adapter.base
    else:
        named = (
            f"base_model_name_or_path {adapter.base!r} is no folder here"
            if adapter.base
            else "no model is named"
        )
        raise ValueError(
            f"{path / ADAPTER_CONFIG}: {named}; give the model it was made for with --base"
        )
    if base != path and (base / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{base}, the model beneath {path}, holds an adapter itself; import it first, and give "
            "that"
        )
    model, tokenizer, changed = load_adapted(base, adapter)
    came["adapter"] = {
        "base": name,
        "made_for": adapter.base,
        "scale": adapter.scale,
        "matrices": changed,
    }
    return model, tokenizer, base


def unused_files(folder: Path) -> dict[str, str]:
    """The files of a checkpoint folder that nothing was read from, each with the reason. Hidden
    ones are left out.
    """
    unused = unread_weights(folder)
    read = {path.relative_to(folder).as_posix() for path in weight_files(folder)}
    read |= {"config.json", INDEX, "import.json", *TOKENIZER_FILES}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        known = hidden or name in read or name.startswith(("adapter_", TEMPLATES))
        if path.is_file() and not known:
            unused.setdefault(
                name, "code, which is never run" if path.suffix == ".py" else NOT_OURS
            )
    return unused


def described_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Facts of a tokenizer, for import.json: its kind, what begins a document, what ends an
    answer.
    """
    backend = tokenizer.backend
    ends = {
        str(backend.token_to_id(word)): {"token": word, "by": list(by)}
        for word, by in tokenizer.endings.tokens.items()
    }
    return {
        "tokenizer": _kind(tokenizer),
        "tokens": len(backend.get_vocab(with_added_tokens=True)),
        "document_start": {str(i): backend.id_to_token(i) for i in tokenizer.document_start},
        "adds_bos": tokenizer.adds_bos,
        "answer_ends": ends,
        "chat_template": tokenizer.chat_template is not None,
        "tokenizer_notes": tokenizer.notes,
    }


def _kind(tokenizer: Tokenizer) -> str:
    """Which algorithm, and whether bytes or characters are its letters."""
    kind = type(tokenizer.backend.model).__name__
    if kind != "BPE":
        return kind
    if "ByteLevel" in repr(tokenizer.backend.pre_tokenizer):
        return "byte-level BPE"
    return (
        "BPE with bytes for unknown characters, as SentencePiece's"
        if tokenizer.backend.model.byte_fallback
        else kind
    )
