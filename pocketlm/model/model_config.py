"""The shape of the network."""

from dataclasses import dataclass

from pocketlm.model.rope import RopeScaling

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
    # Gemma 3: gelu, norms after attention and feed-forward too, embeddings times sqrt(hidden_size)
    gemma_blocks: bool = False
    rope_local_base_freq: float | None = None  # theta of local layers (Gemma 3); None: rope_theta

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
        if self.gemma_blocks and (not self.qk_norm_weight or self.layer_repeats > 1):
            raise ValueError(
                "gemma_blocks needs use_qk_norm and qk_norm_weight, and each block applied once: "
                "its layout holds nothing else"
            )
        if self.rope_local_base_freq and not (self.gemma_blocks and LOCAL in self.layer_types):
            raise ValueError("rope_local_base_freq is of the local layers of gemma_blocks alone")
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
