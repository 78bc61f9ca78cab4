"""The network: a decoder with grouped-query attention, local and global layers, QK-norm and tied
embeddings.

One page covers MobileLLM-R1 (every layer global, weightless QK-norm), MobileLLM-Pro (three local
layers to one global), MobileLLM 2024 with and without shared blocks, and the small Llama, Qwen2,
Qwen3, SmolLM3 and Gemma 3 shapes. Parameter names are Hugging Face's for `qwen3`;
`model/layouts.py` knows the others.

Shapes: B batch, T tokens, S cached slots, D hidden, H query heads, K kv heads, E head width, F
feed-forward, V vocabulary
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pocketlm.model.attention import AttentionContext, Cache, attention_case
from pocketlm.model.kernels.kernel import Documents
from pocketlm.model.layers import Embedding, Linear
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.rope import local_rope_frequencies, rope_angles, rope_frequencies, rotate


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """How a pass is computed, apart from what it means: an attribute of the model, replaced whole.

    dtype: of the matrix products; None is the weights' own. Weights, norms, the residual stream and
    logits stay float32 (training in bfloat16).
    attention: the kernel by name, or "auto" (kernels/choose.py).
    checkpoint_every_n_blocks: activation checkpointing: every n-th application of a block keeps its
    input alone and is recomputed in the backward pass; 1 all of them, 0 none. Gradients stay the
    same, bit for bit.
    compile: torch.compile makes one graph of a block, forward and backward, which all blocks of the
    same window share.
    head_loss: the code of cross-entropy by name, or "auto" (train/head_kernels.py).
    """

    dtype: torch.dtype | None = None
    attention: str = "auto"
    checkpoint_every_n_blocks: int = 0
    compile: bool = False
    head_loss: str = "auto"


Angles = tuple[Tensor, Tensor]  # cos and sin [B, T, E]


class Shared(NamedTuple):
    """What all blocks share in one forward pass."""

    rope: tuple[Angles, Angles]  # of the global layers, and of the local ones
    attention: AttentionContext
    dtype: torch.dtype | None  # of matrix products


class Attention(nn.Module):
    """as_cached: what keys and values [B, T, K, E] become before they are attended to, where
    training is to see what a rounding cache will hold (model/quant.py).
    """

    as_cached: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        self.has_rope = config.has_rope(layer)
        self.eps = config.rms_norm_eps
        self.use_qk_norm = config.use_qk_norm
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=False)
        learned = config.use_qk_norm and config.qk_norm_weight
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps) if learned else None
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps) if learned else None
        self.out_norm = output_norm(config)

    def forward(self, x: Tensor, num_queries: int, shared: Shared, layer: int) -> Tensor:
        """[B, Q, D] of the last Q = num_queries tokens of x [B, T, D]; keys and values are of all
        T.
        """
        (B, T, _), Q, (ropes, attention, dtype) = x.shape, num_queries, shared
        q = self.q_proj(last_tokens(x, Q), dtype).view(B, Q, -1, self.head_dim)  # [B, Q, H, E]
        k = self.k_proj(x, dtype).view(B, T, -1, self.head_dim)  # [B, T, K, E]
        v = self.v_proj(x, dtype).view(B, T, -1, self.head_dim)
        if self.use_qk_norm:
            q, k = self._normalise(q.float(), self.q_norm), self._normalise(k.float(), self.k_norm)
        if self.has_rope:
            rope = ropes[self.window is not None]
            q = rotate(q, *(last_tokens(angles, Q) for angles in rope))
            k = rotate(k, *rope)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self.as_cached is not None:
            k, v = self.as_cached(k), self.as_cached(v)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # [B, H, Q, E], [B, K, T, E] twice
        out = attention.attend(q, k, v, layer, self.window)
        return self.out_norm(self.o_proj(out.transpose(1, 2).reshape(B, Q, -1), dtype))

    def _normalise(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        return norm(x) if norm is not None else F.rms_norm(x, (self.head_dim,), None, self.eps)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = gelu if config.gemma_blocks else F.silu
        self.out_norm = output_norm(config)

    def forward(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        gate, up = self.activation(self.gate_proj(x, dtype)), self.up_proj(x, dtype)
        return self.out_norm(self.down_proj(gate * up, dtype))


class FloatRMSNorm(nn.RMSNorm):
    """RMSNorm of what a product gives, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def output_norm(config: ModelConfig) -> nn.Module:
    """What the output of attention or feed-forward passes before it is added."""
    if config.gemma_blocks:
        return FloatRMSNorm(config.hidden_size, config.rms_norm_eps)
    return nn.Identity()


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, num_queries: int, shared: Shared, layer: int) -> Tensor:
        """[B, Q, D] of the last Q = num_queries tokens of x [B, T, D]."""
        attended = self.self_attn(self.input_layernorm(x), num_queries, shared, layer)
        x = last_tokens(x, num_queries) + attended
        return x + self.mlp(self.post_attention_layernorm(x), shared.dtype)


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """Logits for the next token at every position. Weights start at N(0, initializer_range), from
    `seed` alone. `compute` is how a pass is computed.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.compute = ComputeSettings()
        self.model = Decoder(config)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V], float32, of the token after each of input_ids [B, T].

        positions [B, T]: of each token, for RoPE and the windows; 0..T-1 if absent, as the first
        tokens are. Negative marks padding. cache: keys and values of earlier tokens; the new ones
        are added to it. doc_ids [B, T]: tokens see only tokens of the same id (packed rows); absent
        means the whole row.
        """
        return self.head(self.hidden(input_ids, positions, cache, doc_ids))

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor | None,
        cache: Cache | None = None,
        doc_ids: Tensor | None = None,
        *,
        last: bool = False,
        sees: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """The last normed hidden states [B, T, D], before the head; [B, 1, D], of the last token,
        where `last`. sees: bool [T, T], which new tokens of a pass on a cache see which (a tree).
        documents: of doc_ids, where the batch knows them.
        """
        shared = self._shared(input_ids, positions, cache, doc_ids, sees, documents)
        run = compiled_block() if self.compute.compile else run_block
        every, applications = self.compute.checkpoint_every_n_blocks, self.config.applications
        x = self.model.embed_tokens(input_ids, shared.dtype)
        if self.config.gemma_blocks:
            x = x * self.config.hidden_size**0.5
        for layer in range(applications):
            num_queries = 1 if last and layer == applications - 1 else x.shape[1]
            block = self.model.layers[layer // self.config.layer_repeats]
            # the number of a layer is for the cache alone; one graph serves all blocks
            arguments = (block, x, num_queries, shared, layer if cache is not None else 0)
            if every and layer % every == 0 and torch.is_grad_enabled():
                # a block draws no random numbers, so no state of them is kept
                x = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run(*arguments)
        return self.model.norm(x)

    def _shared(
        self,
        input_ids: Tensor,
        positions: Tensor | None,
        cache: Cache | None,
        doc_ids: Tensor | None,
        sees: Tensor | None,
        documents: Documents | None,
    ) -> Shared:
        (B, T), dtype = input_ids.shape, self.compute.dtype
        plain = positions is None and doc_ids is None and (cache is None or cache.empty)
        if positions is None:
            positions = torch.arange(T, device=input_ids.device).expand(B, T)
        places, device = positions.clamp(min=0), positions.device
        rope = local = rope_angles(places, rope_frequencies(self.config, device))
        if self.config.rope_local_base_freq is not None:
            local = rope_angles(places, local_rope_frequencies(self.config, device))
        windows = {self.config.window(layer) for layer in range(self.config.num_hidden_layers)}
        weights = self.model.embed_tokens.weight
        case = attention_case(self.config, B, T, device, dtype or weights.dtype)
        attention = AttentionContext(
            case, positions, cache, doc_ids, plain, windows, self.compute.attention, sees, documents
        )
        return Shared((rope, local), attention, dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] in float32 from hidden states [..., D]."""
        if self.lm_head is not None:
            return self.lm_head(hidden, self.compute.dtype).float()
        return self.model.embed_tokens.head(hidden, self.compute.dtype).float()


def run_block(block: nn.Module, *arguments: Any) -> Tensor:
    """block(*arguments): a function, so that one compiled form of it serves every block."""
    return block(*arguments)


@functools.cache
def compiled_block() -> Callable[..., Tensor]:
    return torch.compile(run_block)


def last_tokens(x: Tensor, count: int) -> Tensor:
    """The last `count` tokens of x [..., T, C]. All of them are x itself: a view would reorder the
    sums of its gradient.
    """
    return x if count == x.shape[-2] else x[..., -count:, :]
