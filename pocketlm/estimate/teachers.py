"""The shape of a model from its config.json alone: on disk, in the hub's cache, or as published."""

from dataclasses import replace
from pathlib import Path

from pocketlm.estimate.published import LLAMA_8B, dense
from pocketlm.model.costs import StockShape
from pocketlm.model.model_config import ModelConfig
from pocketlm.train.distill.teacher import network_shape

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
        shape = network_shape(folder)
        if isinstance(shape, StockShape) and shape.experts > 1:
            return shape, (
                f"teacher {path} is a mixture of {shape.experts} experts: all are held, FLOPs are "
                "of those a token reads"
            )
        return shape, None
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
    return None if folder is None else network_shape(folder)


def config_folder(path: Path) -> Path | None:
    """The folder with the config.json of a path or hub id."""
    if (path / "config.json").is_file():
        return path
    if len(path.parts) == 2 and not path.is_absolute() and not path.exists():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(str(path), "config.json")
        return Path(file).parent if isinstance(file, str) else None
    return None
