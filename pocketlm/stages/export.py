"""Export: one checkpoint to the files other runtimes run: a Hugging Face folder, a .gguf, a .pte."""

from dataclasses import dataclass
from pathlib import Path

from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint
from pocketlm.model.files import write_folder, write_json
from pocketlm.model.quant import dequantize_weight, quantize_weight, scheme
from pocketlm.model.transformer import Transformer

FORMATS = ("hf", "gguf", "pte")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """formats: of hf, gguf, pte. gguf_dtype: f32, f16, q8_0, q4_0; None takes q4_0 for a four-bit model, else f16.

    context_length: what the .pte's cache holds; None takes the model's positions.
    """

    name: str
    formats: tuple[str, ...] = FORMATS
    gguf_dtype: str | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f"formats names {name!r}; known: {', '.join(FORMATS)}")

    def summary(self) -> str:
        return ", ".join(self.formats)


def export(config: ExportConfig, out: Path, *, model: Path) -> Path:
    """`out`, with hf/, model.gguf and model.pte as asked, and export.json with their sizes.

    A four-bit model keeps the grid it was trained on in all of them: Q4_0 blocks and XNNPACK take its integers and
    scales as they are, and the Hugging Face folder holds their values in float32.
    """
    network, tokenizer = load_checkpoint(model)
    network.eval()
    quantization = quantization_of(model)
    context_length = config.context_length or network.config.max_position_embeddings
    if context_length > network.config.max_position_embeddings:
        raise ValueError(
            f"{config.name}.context_length {context_length} exceeds the model's {network.config.max_position_embeddings} positions"
        )
    sizes: dict[str, int] = {}
    if "gguf" in config.formats:
        from pocketlm.export.gguf import write_gguf

        dtype = config.gguf_dtype or ("q4_0" if quantization else "f16")
        sizes["model.gguf"] = write_gguf(network, tokenizer, out / "model.gguf", dtype).stat().st_size
    if "pte" in config.formats:
        from pocketlm.export.executorch import write_pte

        file = write_pte(
            network, tokenizer, out / "model.pte", context_length=context_length, quantization=quantization
        )
        sizes["model.pte"] = file.stat().st_size
    if "hf" in config.formats:
        with write_folder(out / "hf") as folder:
            save_checkpoint(folder, on_grid(network, quantization), tokenizer)
        sizes["hf"] = sum(file.stat().st_size for file in (out / "hf").iterdir())
    write_json(out / "export.json", {"model": model.name, "quantization": quantization, "bytes": sizes})
    return out


def on_grid(model: Transformer, quantization: str | None) -> Transformer:
    """A plain network whose weights are the four-bit grid's values, for runtimes that know no scheme of ours."""
    if quantization is None:
        return model
    chosen = scheme(quantization)
    plain = Transformer(model.config)
    plain.load_state_dict(
        {
            name: dequantize_weight(*quantize_weight(tensor, chosen)) if tensor.dim() == 2 else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    return plain
