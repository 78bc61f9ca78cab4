"""The Transformer as an ExecuTorch program sees it: one sequence, its KV cache inside, XNNPACK's
operators.

It computes what `model/transformer.py` computes, on the same weights. Three things are written
differently, so that all between two attentions is ONE delegated piece: the mean of RMSNorm and the
half turn of RoPE are small matrix products (XNNPACK averages only images and slices only fixed
shapes), attention is ExecuTorch's own operator.

Shapes: T tokens of this call, D hidden, H query heads, K kv heads, E head width, V vocabulary,
        C context length, R slots of a local layer's ring, O outputs, I inputs, G groups of 32
        weights
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlm.export.pte_cache import FloatCache, Int8Cache, Ring
from pocketlm.model.quant import Scheme, quantize_weight
from pocketlm.model.rope import local_rope_frequencies, rope_frequencies
from pocketlm.model.transformer import Block, Transformer

LOGITS_BYTES = 2**26  # the program keeps room for the logits of one call
CHUNK_TOKENS = 128  # at most so many tokens a call, ExecuTorch's own default


class PteNetwork(nn.Module):
    """forward(tokens int64 [1, T], input_pos int64 [1]) -> logits [1, T, V], as ExecuTorch's runner
    calls it.

    input_pos is the position of the first token. A sequence starts at 0; what an earlier one left
    is masked.
    """

    frequency: Tensor
    local_frequency: Tensor | None  # where it differs
    half_turn: Tensor
    slots: Tensor

    def __init__(
        self,
        model: Transformer,
        context_length: int,
        scheme: Scheme | None,
        *,
        int8_cache: bool = False,
    ) -> None:
        super().__init__()
        config = model.config
        int8_cache |= scheme is not None and scheme.int8_cache
        store = Int8Cache if int8_cache else FloatCache
        self.context_length = context_length
        self.chunk = chunk_tokens(config.vocab_size, context_length)
        windows = [config.window(i // config.layer_repeats) for i in range(config.applications)]
        windows = [w if w is not None and w < context_length else None for w in windows]
        self.window = next((w for w in windows if w is not None), 0)  # 0: every layer is global
        # a call must not overwrite what its first token still sees: itself and window - 1 tokens
        # before it
        self.ring = min(context_length, max(self.window, 1) + self.chunk - 1)
        table = model.model.embed_tokens.weight
        self.embed_tokens = Int4Table(table, scheme) if scheme else FloatTable(table)
        self.layers = nn.ModuleList()
        for i, window in enumerate(windows):
            block = model.model.layers[i // config.layer_repeats]
            assert isinstance(block, Block)
            slots = self.ring if window else context_length
            cache = store(slots, config.num_key_value_heads, config.head_dim, local=bool(window))
            self.layers.append(PteBlock(block, cache, scheme))
        self.norm = Norm(model.model.norm)
        self.int8 = Int8Tokens() if scheme else nn.Identity()
        self.head = linear(model.lm_head.weight if model.lm_head is not None else table, scheme)
        self.embedding_scale = config.hidden_size**0.5 if config.gemma_blocks else None
        frequency, local = rope_frequencies(config), local_rope_frequencies(config)
        self.register_buffer("frequency", torch.cat([frequency, frequency]))
        turned = None if torch.equal(frequency, local) else torch.cat([local, local])
        self.register_buffer("local_frequency", turned)
        self.register_buffer("half_turn", half_turn(config.head_dim))
        self.register_buffer("slots", torch.arange(self.ring))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        T = tokens.shape[1]
        start = input_pos[0].item()  # symbolic while exporting; int() would fix it
        torch._check(start >= 0)
        torch._check(start < self.context_length)
        torch._check(start + T <= self.context_length)
        positions = input_pos + torch.arange(T)
        angle = positions.float()[None, :, None, None] * self.frequency  # [1, T, 1, E]
        rope = local_rope = (angle.cos(), angle.sin(), self.half_turn)
        if self.local_frequency is not None:
            angle = positions.float()[None, :, None, None] * self.local_frequency
            local_rope = (angle.cos(), angle.sin(), self.half_turn)
        ring = self.ring_places(positions, input_pos + (T - 1)) if self.window else None
        x = self.embed_tokens(tokens)
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        for layer in self.layers:
            x = layer(x, local_rope if layer.windowed else rope, start, ring)
        return self.head(self.int8(self.norm(x)))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the linear layers as the file holds them: each token reads them all."""
        return sum(
            layer.num_bytes
            for layer in self.modules()
            if isinstance(layer, FloatLinear | Int4Linear)
        )

    @property
    def kv_bytes(self) -> tuple[int, int]:
        """(bytes of the whole cache, bytes of it that hold one token in the global layers)."""
        caches = [cache for cache in self.modules() if isinstance(cache, FloatCache)]
        sizes = [
            (sum(buffer.nbytes for buffer in cache.buffers()), cache.local) for cache in caches
        ]
        return sum(size for size, _ in sizes), sum(
            size // self.context_length for size, local in sizes if not local
        )

    def ring_places(self, positions: Tensor, last: Tensor) -> Ring:
        """Where the local layers put the new keys, and a mask: 0 where a query may look, else -inf.

        Position p lives in slot p mod R, so the newest position in slot j is last - (last - j) mod
        R.
        """
        slot_positions = last - torch.remainder(last - self.slots, self.ring)
        gap = positions[:, None] - slot_positions[None, :]
        allowed = (gap >= 0) & (gap < self.window) & (slot_positions >= 0)
        return torch.remainder(positions, self.ring)[None], torch.where(allowed, 0.0, float("-inf"))


def chunk_tokens(vocab_size: int, context_length: int) -> int:
    """Tokens of one call: as many as leave the logits within LOGITS_BYTES."""
    return min(context_length, CHUNK_TOKENS, max(8, LOGITS_BYTES // (4 * vocab_size)))


class PteBlock(nn.Module):
    """One layer with its part of the cache."""

    def __init__(self, block: Block, cache: FloatCache, scheme: Scheme | None) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.head_dim = attention.head_dim
        self.input_layernorm = Norm(block.input_layernorm)
        self.post_attention_layernorm = Norm(block.post_attention_layernorm)
        self.int8 = Int8Tokens() if scheme else nn.Identity()
        self.q_proj = linear(attention.q_proj.weight, scheme, attention.q_proj.bias)
        self.k_proj = linear(attention.k_proj.weight, scheme, attention.k_proj.bias)
        self.v_proj = linear(attention.v_proj.weight, scheme, attention.v_proj.bias)
        self.o_proj = linear(attention.o_proj.weight, scheme)
        self.gate_proj = linear(mlp.gate_proj.weight, scheme)
        self.up_proj = linear(mlp.up_proj.weight, scheme)
        self.down_proj = linear(mlp.down_proj.weight, scheme)
        ones = nn.RMSNorm(attention.head_dim, attention.eps)
        self.q_norm = Norm(attention.q_norm or ones) if attention.use_qk_norm else nn.Identity()
        self.k_norm = Norm(attention.k_norm or ones) if attention.use_qk_norm else nn.Identity()
        self.has_rope, self.windowed = attention.has_rope, attention.window is not None
        self.activation = mlp.activation
        self.attention_norm = _output_norm(attention.out_norm)
        self.mlp_norm = _output_norm(mlp.out_norm)
        self.cache = cache

    def forward(self, x: Tensor, rope: tuple[Tensor, ...], start: Any, ring: Ring | None) -> Tensor:
        x = x + self.attention(self.int8(self.input_layernorm(x)), rope, start, ring)
        y = self.int8(self.post_attention_layernorm(x))
        inner = self.int8(self.activation(self.gate_proj(y)) * self.up_proj(y))
        return x + self.mlp_norm(self.down_proj(inner))

    def attention(
        self, x: Tensor, rope: tuple[Tensor, ...], start: Any, ring: Ring | None
    ) -> Tensor:
        T = x.shape[1]
        q = self.q_proj(x).view(1, T, -1, self.head_dim)  # [1, T, H, E]
        k = self.k_proj(x).view(1, T, -1, self.head_dim)  # [1, T, K, E]
        v = self.v_proj(x).view(1, T, -1, self.head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.has_rope:
            q, k = rotate(q, *rope), rotate(k, *rope)
        out = self.cache(q, k, v, start, ring)
        return self.attention_norm(self.o_proj(self.int8(out.reshape(1, T, -1))))


class Norm(nn.Module):
    """RMSNorm, its mean a product with one row of 1/D."""

    average: Tensor
    eps: Tensor

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        size = norm.weight.shape[0]
        self.register_buffer("average", torch.full((1, size), 1.0 / size))
        self.register_buffer("eps", torch.tensor([norm.eps]))
        self.weight = None if bool((norm.weight == 1).all()) else norm.weight  # ones change nothing

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(F.linear(x * x, self.average) + self.eps)
        return x if self.weight is None else x * self.weight


def _output_norm(norm: nn.Module) -> nn.Module:
    return Norm(norm) if isinstance(norm, nn.RMSNorm) else nn.Identity()


def half_turn(size: int) -> Tensor:
    """The matrix [E, E] that turns (first, second) half into (-second, first): RoPE's half-split
    layout.
    """
    eye = torch.eye(size // 2)
    zero = torch.zeros_like(eye)
    return torch.cat([torch.cat([zero, zero - eye], 1), torch.cat([eye, zero], 1)])


def rotate(x: Tensor, cos: Tensor, sin: Tensor, turn: Tensor) -> Tensor:
    return x * cos + F.linear(x, turn) * sin


class FloatTable(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Int4Table(nn.Module):
    """The token table as ExecuTorch's 4-bit operator keeps it: two levels + 8 in a byte, the even
    one high.

    That operator knows float16 and float32 scales. Ours are bfloat16 values of at least 2**-14:
    exact in float16.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        super().__init__()
        qweight, scale = quantize_weight(weight, scheme)
        if bool((scale > torch.finfo(torch.float16).max).any()):
            raise ValueError("embed_tokens needs a scale beyond float16; its weights are damaged")
        levels = (qweight + 8).to(torch.uint8)
        self.register_buffer("packed", (levels[:, 0::2] << 4) | levels[:, 1::2])  # [V, D/2]
        self.register_buffer("scale", scale.to(torch.float16))  # [V, G]
        self.levels = (scheme.lowest, scheme.highest)

    def forward(self, ids: Tensor) -> Tensor:
        embedding = torch.ops.quantized_decomposed.embedding_4bit.dtype
        return embedding(self.packed, self.scale, None, *self.levels, ids, dtype=torch.float32)


class FloatLinear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias, self.num_bytes = weight, bias, weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int4Linear(nn.Module):
    """A linear layer on OUR integers and scales; its input comes from Int8Tokens.

    torchao's own conversion would choose other scales. XNNPACK stores these as 4-bit levels and
    bfloat16 scales, so nothing is rounded again.
    """

    qweight: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, scheme: Scheme, bias: Tensor | None) -> None:
        super().__init__()
        qweight, scale = quantize_weight(weight, scheme)
        self.bias = bias
        self.register_buffer("qweight", qweight)  # [O, I]
        self.register_buffer("scale", scale.float())  # [O, G], bfloat16 values
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int8))
        self.group, self.levels = [1, scheme.group_size], (scheme.lowest, scheme.highest)
        # in the file: four bits, bfloat16 scales
        self.num_bytes = qweight.numel() // 2 + 2 * scale.numel()

    def forward(self, x: Tensor) -> Tensor:
        dequantize = torch.ops.torchao.dequantize_affine
        return F.linear(
            x,
            dequantize(
                self.qweight, self.group, self.scale, self.zero_point, torch.int8, *self.levels
            ),
            self.bias,
        )


def linear(weight: Tensor, scheme: Scheme | None, bias: Tensor | None = None) -> nn.Module:
    return Int4Linear(weight, scheme, bias) if scheme else FloatLinear(weight, bias)


class Int8Tokens(nn.Module):
    """Activations [1, T, I] on an int8 grid chosen for each token, once for all the layers that
    read them.

    The same grid as `fake_quantize_tokens` in model/int8_rounding.py; XNNPACK turns the three
    operators into one of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        torchao = torch.ops.torchao
        token, levels = [1, 1, x.shape[-1]], (-128, 127)
        epsilon = torch.finfo(torch.float32).eps
        scale, zero = torchao.choose_qparams_affine(
            x, "ASYMMETRIC", token, torch.int8, *levels, epsilon, torch.float32, torch.int8
        )
        quantized = torchao.quantize_affine(x, token, scale, zero, torch.int8, *levels)
        return torchao.dequantize_affine(quantized, token, scale, zero, torch.int8, *levels)
