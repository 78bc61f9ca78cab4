"""The network: a decoder with grouped-query attention, local and global layers, QK-norm and tied
embeddings.

One page covers MobileLLM-R1 (every layer global, weightless QK-norm), MobileLLM-Pro (three local
layers to one global), MobileLLM 2024 with and without shared blocks, and the small Llama, Qwen2,
Qwen3 and SmolLM3 shapes. Parameter names are Hugging Face's for `qwen3`; `model/layouts.py` knows
the others.

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
from pocketlm.model.rope import RopeScaling, rope_angles, rope_frequencies, rotate

GLOBAL = "full_attention"  # Hugging Face's words for the two kinds of layer
LOCAL = "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network, in Hugging Face's field names. `layer_types` empty means every layer is
    global.

    layer_repeats: how often each block is applied, in a row (MobileLLM-LS 2024: 2). The weights are
    shared, the keys and values are not: each application has a KV slot of its own.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float = 1e-5  # R1 and MobileLLM 2024
    tie_word_embeddings: bool = True
    use_qk_norm: bool = True
    qk_norm_weight: bool = False  # R1's QK-norm has no weights; Qwen3's has
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None  # keys a local layer sees, itself included
    initializer_range: float = 0.02
    rope_scaling: RopeScaling | None = None
    layer_repeats: int = 1
    qkv_bias: bool = False  # Qwen2's queries, keys and values have biases
    # of each layer 1 with RoPE, 0 without (SmolLM3); empty: all with
    no_rope_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: RoPE turns pairs of channels")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is "
                f"{self.num_hidden_layers}"
            )
        for kind in self.layer_types:
            if kind not in (GLOBAL, LOCAL):
                raise ValueError(f"layer_types holds {kind!r}; known are {GLOBAL!r} and {LOCAL!r}")
        if LOCAL in self.layer_types and not self.sliding_window:
            raise ValueError(
                "layer_types has sliding_attention layers, so sliding_window must be set"
            )
        turned = self.no_rope_layers
        if turned and (len(turned) != self.num_hidden_layers or set(turned) - {0, 1}):
            raise ValueError(
                f"no_rope_layers {turned} must hold a 1 (RoPE) or a 0 (none) for each of "
                f"num_hidden_layers {self.num_hidden_layers}"
            )
        if turned and 0 not in turned:  # one spelling of one network
            object.__setattr__(self, "no_rope_layers", ())
        alone = [name for name in ("qkv_bias", "no_rope_layers") if getattr(self, name)]
        if alone and (self.use_qk_norm or self.layer_repeats > 1 or len(alone) > 1):
            raise ValueError(
                f"{' and '.join(alone)} goes with neither use_qk_norm nor layer_repeats, nor one "
                "with the other: no layout holds both"
            )
        if self.layer_repeats < 1:
            raise ValueError(f"layer_repeats {self.layer_repeats} must be at least 1")

    @property
    def applications(self) -> int:
        """Blocks that a token passes, shared ones counted each time: the layers of its KV cache."""
        return self.num_hidden_layers * self.layer_repeats

    def window(self, layer: int) -> int | None:
        """Keys layer number `layer` attends to, or None for all."""
        local = self.layer_types and self.layer_types[layer] == LOCAL
        return self.sliding_window if local else None

    def has_rope(self, layer: int) -> bool:
        """Whether the queries and keys of layer number `layer` are turned by their positions."""
        return not self.no_rope_layers or bool(self.no_rope_layers[layer])

    @staticmethod
    def local_global(num_hidden_layers: int, every: int = 4) -> tuple[str, ...]:
        """Pro's `layer_types`: layer 0, each `every`-th and the last are global (9 of 30)."""
        last = num_hidden_layers - 1
        return tuple(
            GLOBAL if i % every == 0 or i == last else LOCAL for i in range(num_hidden_layers)
        )


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


class Shared(NamedTuple):
    """What all blocks share in one forward pass."""

    rope: tuple[Tensor, Tensor]  # cos and sin [B, T, E]
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

    def forward(self, x: Tensor, num_queries: int, shared: Shared, layer: int) -> Tensor:
        """[B, Q, D] of the last Q = num_queries tokens of x [B, T, D]; keys and values are of all
        T.
        """
        (B, T, _), Q, (rope, attention, dtype) = x.shape, num_queries, shared
        q = self.q_proj(last_tokens(x, Q), dtype).view(B, Q, -1, self.head_dim)  # [B, Q, H, E]
        k = self.k_proj(x, dtype).view(B, T, -1, self.head_dim)  # [B, T, K, E]
        v = self.v_proj(x, dtype).view(B, T, -1, self.head_dim)
        if self.use_qk_norm:
            q, k = self._normalise(q.float(), self.q_norm), self._normalise(k.float(), self.k_norm)
        if self.has_rope:
            q = rotate(q, *(last_tokens(angles, Q) for angles in rope))
            k = rotate(k, *rope)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self.as_cached is not None:
            k, v = self.as_cached(k), self.as_cached(v)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # [B, H, Q, E], [B, K, T, E] twice
        out = attention.attend(q, k, v, layer, self.window)
        return self.o_proj(out.transpose(1, 2).reshape(B, Q, -1), dtype)

    def _normalise(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        return norm(x) if norm is not None else F.rms_norm(x, (self.head_dim,), None, self.eps)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x, dtype)) * self.up_proj(x, dtype), dtype)


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
        rope = rope_angles(positions.clamp(min=0), rope_frequencies(self.config, positions.device))
        windows = {self.config.window(layer) for layer in range(self.config.num_hidden_layers)}
        weights = self.model.embed_tokens.weight
        case = attention_case(self.config, B, T, positions.device, dtype or weights.dtype)
        attention = AttentionContext(
            case, positions, cache, doc_ids, plain, windows, self.compute.attention, sees, documents
        )
        return Shared(rope, attention, dtype)

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
