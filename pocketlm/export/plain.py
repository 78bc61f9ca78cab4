"""A network in the forms that other runtimes know: no scheme of ours, no shared blocks."""

import copy
from dataclasses import replace

import torch

from pocketlm.model.quant import CPU, SCALE, FakeQuantized, prepare, scheme_of
from pocketlm.model.transformer import Transformer


def as_stored(network: Transformer, dtype: str) -> Transformer:
    """What a .gguf of this dtype holds: the weights' values, on their grid if they have one, and
    float activations.

    llama.cpp rounds activations to int8 for every 32 of them, which is much finer than the rounding
    for each token that a model is trained with (and that a .pte computes with); so this is the
    network that it comes closest to.
    """
    if dtype == "q4_0" and scheme_of(network) is None:
        network = prepare(copy.deepcopy(network), CPU)  # what Q4_0 is to it
    return dequantized_model(network)


def dequantized_model(model: Transformer) -> Transformer:
    """A plain network of the same values: a four-bit model's grid, for runtimes that know no scheme
    of ours.
    """
    plain = Transformer(model.config)
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if not name.endswith(SCALE)
    }
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, FakeQuantized):
                tensors[f"{name}.weight"] = module.grid_weight()
    plain.load_state_dict(tensors)
    return plain.eval()


def unrolled(model: Transformer) -> Transformer:
    """The same network with each application of a shared block as a block of its own: for who knows
    no sharing.
    """
    repeats = model.config.layer_repeats
    if repeats == 1:
        return model
    kinds = tuple(kind for kind in model.config.layer_types for _ in range(repeats))
    deeper = Transformer(
        replace(
            model.config,
            num_hidden_layers=model.config.applications,
            layer_repeats=1,
            layer_types=kinds,
        )
    )
    scheme = scheme_of(model)
    if scheme is not None:
        prepare(deeper, scheme)
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name
    }
    for i, block in enumerate(model.model.layers):
        for name, tensor in block.state_dict().items():
            tensors |= {f"model.layers.{i * repeats + k}.{name}": tensor for k in range(repeats)}
    deeper.load_state_dict(tensors)
    return deeper.eval()
