"""The weights inside a .pte: which of a network's are not there as they should be, and how far off
they are.

A .pte names no weight: XNNPACK keeps its own under a hash of their bytes, the other operators' go
by number. So each tensor of the network is brought into the form that the file keeps, and looked
for. One that is absent is compared with what the file has in its place: of what belongs to no
tensor, that of its size.

Shapes: V vocabulary, D hidden, O outputs, I inputs, G groups of 32 weights, E head width
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pocketlm.export.pte import stored_buffers
from pocketlm.model.quant import Scheme, quantize_weight, scheme_of
from pocketlm.model.rope import rope_frequencies, rotate
from pocketlm.model.transformer import Transformer

PADDING = 16  # bytes: constants are stored in multiples of so many
Form = tuple[str, Tensor]  # a tensor's name and what a file holds of it


def absent_tensors(path: Path, network: Transformer) -> dict[str, float]:
    """For each tensor that the file does not hold as it should: the distance of what it holds, as a
    share of the tensor.

    Empty if all are there. Tensors that changed places are there: what a file does with them shows
    only when it runs.
    """
    constants, weights = stored_buffers(path)
    scheme = scheme_of(network)
    distances: dict[str, float] = {}
    for forms, stored in (
        (_constants(network, scheme), constants),
        (_weights(network, scheme), weights),
    ):
        for name, gap in _gaps(list(forms), stored).items():
            distances[name] = max(gap, distances.get(name, 0.0))
    return distances


def _constants(network: Transformer, scheme: Scheme | None) -> Iterator[Form]:
    """What ExecuTorch's own operators read: the token table, the norms that are not all ones,
    RoPE's frequencies.
    """
    table = network.model.embed_tokens.weight
    if scheme is None:
        yield "model.embed_tokens.weight", table
    else:
        qweight, scale = quantize_weight(table, scheme)
        # the even one is high
        yield "model.embed_tokens.weight", _nibbles(qweight.flip(-1)).flip(-1)
        yield "model.embed_tokens.weight", scale.to(torch.float16)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 and not bool((parameter == 1).all()):
            yield name, parameter
    frequencies = rope_frequencies(network.config)
    yield "RoPE's frequencies", torch.cat([frequencies, frequencies])


def _weights(network: Transformer, scheme: Scheme | None) -> Iterator[Form]:
    """What XNNPACK multiplies by: each linear layer, the turn of RoPE, and the means of the
    norms.
    """
    config = network.config
    eye = torch.eye(config.head_dim)
    # cos and sin of a right angle
    quarter = torch.zeros(1, 1, config.head_dim), torch.ones(1, 1, config.head_dim)
    yield "RoPE's half turn", rotate(eye[None, None], *quarter)[0, 0].T
    for size in (
        (config.hidden_size, config.head_dim) if config.use_qk_norm else (config.hidden_size,)
    ):
        yield f"the mean of {size} channels", torch.full((1, size), 1.0 / size)
    matrices = {name: p for name, p in network.named_parameters() if p.dim() == 2}
    table = matrices.pop("model.embed_tokens.weight")
    if network.lm_head is None:
        matrices["the head of model.embed_tokens.weight"] = table
    for name, weight in matrices.items():
        if scheme is None:
            yield name, weight
        else:
            qweight, scale = quantize_weight(weight, scheme)
            yield name, _nibbles(qweight)
            yield name, scale


def _nibbles(qweight: Tensor) -> Tensor:
    """Two levels + 8 in a byte, the odd one high: [O, I / 2]."""
    levels = (qweight + 8).to(torch.uint8)
    return levels[:, 1::2] << 4 | levels[:, 0::2]


def _gaps(forms: list[Form], stored: list[bytes]) -> dict[str, float]:
    """For each name whose tensor is not among the stored ones, its distance from the one of its
    size that is nobody's.
    """
    expected = [_bytes(tensor) for _, tensor in forms]
    known = set(expected)
    unknown: dict[int, list[bytes]] = defaultdict(list)
    for content in map(_padded, stored):
        if content not in known:
            unknown[len(content)].append(content)
    present = set(map(_padded, stored))
    gaps: dict[str, float] = {}
    for (name, tensor), content in zip(forms, expected, strict=True):
        if content not in present:
            candidates = unknown[len(content)]
            gap = _distance(tensor, candidates.pop(0)) if candidates else 1.0
            gaps[name] = max(gap, gaps.get(name, 0.0))
    return gaps


def _bytes(tensor: Tensor) -> bytes:
    return _padded(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % PADDING)


def _distance(tensor: Tensor, content: bytes) -> float:
    """The share of a tensor by which what was stored in its place differs."""
    other = torch.frombuffer(bytearray(content), dtype=tensor.dtype)[: tensor.numel()].view(
        tensor.shape
    )
    expected, stored = (_values(t.detach()) for t in (tensor, other))
    return float((stored - expected).norm() / expected.norm().clamp(min=1e-12))


def _values(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.uint8:
        return tensor.float()
    return torch.stack([tensor & 15, tensor >> 4]).float() - 8
