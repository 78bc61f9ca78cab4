"""The shape of a model from its config.json alone: on disk, in the hub's cache, or as published."""

from dataclasses import replace
from pathlib import Path

from pocketlm.estimate.published import LLAMA_8B, dense
from pocketlm.model.checkpoint import shape_of
from pocketlm.model.files import read_json
from pocketlm.model.transformer import ModelConfig

LLAMA_70B = replace(
    LLAMA_8B,
    hidden_size=8192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
)
# by the end of a path or hub id; from the config.json of each
PUBLISHED = {
    "llama-3.1-8b": LLAMA_8B,
    "llama-3.1-70b": LLAMA_70B,
    "llama-3.3-70b": LLAMA_70B,
    "llama-3.2-1b": dense(16, 2048, 8192, 32, 8, 128_256),
    "llama-3.2-3b": dense(28, 3072, 8192, 24, 8, 128_256),
}


def teacher_shape(path: Path, student: ModelConfig) -> tuple[ModelConfig, str | None]:
    """(shape of a teacher, what is assumed about it, if anything).

    A teacher that is nowhere is planned as one of 8B with the student's vocabulary: R1's teacher,
    and the size that Pro's stand-in may have on the machines named.
    """
    if (folder := config_folder(path)) is not None:
        shape, experts = shape_of_any(folder)
        note = f"teacher {path} is a mixture of {experts} experts: all are held, FLOPs are at most"
        return shape, note if experts > 1 else None
    name = path.name.lower().removesuffix("-instruct")
    if name in PUBLISHED:
        return PUBLISHED[name], f"teacher {path} is not here: planned with its published shape"
    stand_in = replace(LLAMA_8B, vocab_size=student.vocab_size)
    return stand_in, f"teacher {path} is not here: planned as Llama 3.1 8B with the student's words"


def shape_on_disk(path: Path) -> ModelConfig | None:
    """The shape of a checkpoint folder, or of a hub id whose config.json the hub's cache holds;
    None where neither is there. Weights are not needed.
    """
    folder = config_folder(path)
    return None if folder is None else shape_of_any(folder)[0]


def config_folder(path: Path) -> Path | None:
    """The folder with the config.json of a path or hub id."""
    if (path / "config.json").is_file():
        return path
    if len(path.parts) == 2 and not path.is_absolute() and not path.exists():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(str(path), "config.json")
        return Path(file).parent if isinstance(file, str) else None
    return None


def shape_of_any(folder: Path) -> tuple[ModelConfig, int]:
    """(shape, experts of each layer): what pocketlm itself opens, exactly; of any other causal
    model the sizes that decide memory and FLOPs. ValueError where its config.json lacks them.

    Experts count as one feed-forward of their width together: so many weights are held.
    """
    try:
        return shape_of(folder), 1
    except ValueError as refused:
        raw = read_json(folder / "config.json")
        raw = raw.get("text_config", raw) if isinstance(raw, dict) else {}
        try:
            heads, width = int(raw["num_attention_heads"]), int(raw["hidden_size"])
            experts = int(raw.get("num_local_experts") or raw.get("num_experts") or 1)
            if experts > 1 and str(raw.get("model_type", "")).startswith("llama4"):
                experts += 1  # one more that every token passes through
            shape = dense(
                int(raw["num_hidden_layers"]),
                width,
                int(raw["intermediate_size"]) * experts,
                heads,
                int(raw.get("num_key_value_heads") or heads),
                int(raw["vocab_size"]),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            )
            return replace(shape, head_dim=int(raw.get("head_dim") or width // heads)), experts
        except (KeyError, TypeError, ValueError):
            raise refused from None
