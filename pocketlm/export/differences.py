"""Which tensor of an exported file is farthest from the network's: said where the two disagree."""

from pathlib import Path

from pocketlm.export.import_gguf import stored_tensors
from pocketlm.export.plain import dequantized_model, unrolled
from pocketlm.export.read_back_pte import absent_tensors
from pocketlm.model.transformer import Transformer


def most_different_tensor(file: Path, network: Transformer) -> str:
    """The tensor of a .gguf or .pte whose values are farthest from the network's, in words."""
    gaps = absent_tensors(file, network) if file.suffix == ".pte" else gguf_gaps(file, network)
    name = max(gaps, key=gaps.__getitem__, default="")
    if not name or gaps[name] < 0.01:
        return (
            "; every tensor in it is the model's to 1 %, so the difference is in how the runtime "
            "computes"
        )
    return f"; the tensor that differs most is {name}, by {gaps[name]:.0%}"


def gguf_gaps(file: Path, network: Transformer) -> dict[str, float]:
    """The distance of each tensor of a .gguf from the network's, as a share of it."""
    expected = unrolled(dequantized_model(network)).state_dict()
    stored = {name: tensor for name, tensor in stored_tensors(file) if name in expected}
    return {
        n: float((stored[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-12))
        for n in stored
    }
