"""What a network costs, from its shape alone: parameters, FLOPs of training, bytes kept for the
backward pass.

A FLOP is half a multiply-add, so a product [N, I] x [I, O] is 2NIO. Attention counts the pairs of
query and key that the blockwise kernel computes, about half of T x T in a global layer; published
utilisations mostly count all of it, as torch's FlopCounterMode does of torch's own attention. It
agrees with the rest to the last FLOP, and what autograd saves on the CPU with kept bytes to the
last byte (tests/unit/test_costs.py).

Shapes: B rows, T tokens, N = B x T, D hidden, H query heads, K kv heads, E head width, F
feed-forward, V vocabulary
"""

from dataclasses import dataclass, replace

import torch

from pocketlm.model.attention import attention_case
from pocketlm.model.kernels.blockwise import QUERIES
from pocketlm.model.kernels.choose import choose_kernel
from pocketlm.model.kernels.kernel import AttentionCase, Kernel
from pocketlm.model.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one pass through the blocks and the head: of products with weights, of attention, of the
    head's logits once.
    """

    products: int
    attention: int
    head: int

    @property
    def forward(self) -> int:
        return self.products + self.attention + self.head

    def training(self, *, recomputed: float = 0.0) -> int:
        """Forward and backward. The backward pass takes twice a product, and computes the scores of
        attention once more.

        recomputed: share of the blocks that the backward pass recomputes.
        """
        return (
            int((3 + recomputed) * self.products + (3.5 + recomputed) * self.attention)
            + 3 * self.head
        )


@dataclass(frozen=True, kw_only=True)
class StockShape(ModelConfig):
    """The shape of a network that stock transformers computes, counted by the library itself
    (inference/stock_shape.py).

    The fields of ModelConfig are those of a network of ours that computes about as much for a
    token: of experts those that a token reads. parameters: all of them, tied ones once.
    largest_block: of its greatest layer. outside_blocks: table, head and norms. local_masks: kinds
    of layers (sliding, chunked) for which the library holds a mask of every pair of tokens.
    """

    parameters: int
    largest_block: int
    outside_blocks: int
    experts: int = 1
    local_masks: int = 0


def head_parameters(config: ModelConfig) -> int:
    """Weights of the token table, and so of the output head."""
    return config.vocab_size * config.hidden_size


def block_matrices(config: ModelConfig) -> int:
    """Weights of the linear layers of one block."""
    attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    return config.hidden_size * (attention + 3 * config.intermediate_size)


def num_parameters(config: ModelConfig) -> int:
    """All parameters, tied ones once."""
    if isinstance(config, StockShape):
        return config.parameters
    norms = (4 if config.gemma_blocks else 2) * config.hidden_size
    norms += 2 * config.head_dim * (config.use_qk_norm and config.qk_norm_weight)
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    biases = heads * config.head_dim * config.qkv_bias
    tables = head_parameters(config) * (1 if config.tie_word_embeddings else 2)
    blocks = config.num_hidden_layers * (block_matrices(config) + norms + biases)
    return tables + blocks + config.hidden_size


def flops_of(config: ModelConfig, rows: int, seq_len: int) -> Flops:
    """Of a forward pass. Where documents of a row are kept apart, attention takes less, by as much
    as they are short.
    """
    windows = [config.window(layer // config.layer_repeats) for layer in range(config.applications)]
    pairs = sum(attention_pairs(window, seq_len) for window in windows)
    return Flops(
        products=2 * rows * seq_len * block_matrices(config) * config.applications,
        # scores, and the sum of values
        attention=4 * rows * config.num_attention_heads * config.head_dim * pairs,
        head=2 * rows * seq_len * head_parameters(config),
    )


def attention_pairs(window: int | None, seq_len: int) -> int:
    """Pairs of query and key that one head of a layer computes for a row; window None: a global
    layer.
    """
    # keys before its first query that a block of queries sees
    before = seq_len if window is None else window - 1
    blocks = [(first, min(QUERIES, seq_len - first)) for first in range(0, seq_len, QUERIES)]
    return sum(count * (count + min(first, before)) for first, count in blocks)


def kept_bytes(
    config: ModelConfig,
    rows: int,
    seq_len: int,
    *,
    product_bytes: int,
    on_grid: bool = False,
    checkpoint_every_n_blocks: int = 0,
    masked: bool = False,
    device: str = "cpu",
    attention: str = "auto",
) -> int:
    """Bytes that the blocks of a forward pass leave for the backward pass: activations, and weights
    in another form.

    A block that the backward pass recomputes leaves its input, and as much as any other when its
    turn comes there.

    product_bytes: 2 or 4, of a number in matrix products. on_grid: weights and activations
    are rounded while training. checkpoint_every_n_blocks: as in ComputeSettings. masked: documents
    of a row are kept apart. device, attention: where it runs and the kernel that the config names,
    which is asked what it keeps; a device that it does not run on is taken to choose by itself.
    """
    block = _block_bytes(config, rows, seq_len, product_bytes, on_grid)
    # a result that a kernel keeps is the next product's input too, unless that is rounded
    result = on_grid * product_bytes * rows * seq_len * config.num_attention_heads * config.head_dim
    dtype = torch.float32 if product_bytes == 4 else torch.bfloat16
    case = attention_case(config, rows, seq_len, torch.device(device), dtype)
    total = 0
    for number in range(config.applications):
        if checkpoint_every_n_blocks and number % checkpoint_every_n_blocks == 0:
            total += 4 * rows * seq_len * config.hidden_size
        else:
            window = config.window(number // config.layer_repeats)
            own_case = replace(case, window=window, packed=masked)
            kernel = _kernel(attention, own_case)
            total += block + kernel.kept_bytes(own_case) + kernel.keeps_result * result
    return total


def _kernel(attention: str, case: AttentionCase) -> Kernel:
    try:
        return choose_kernel(attention, case).kernel
    except ValueError:
        return choose_kernel("auto", case).kernel


def _block_bytes(
    config: ModelConfig, rows: int, seq_len: int, product_bytes: int, on_grid: bool
) -> int:
    """Without what its attention keeps beside queries, keys, values and their result."""
    D, F, H = config.hidden_size, config.intermediate_size, config.num_attention_heads
    q, kv = H * config.head_dim, config.num_key_value_heads * config.head_dim
    # each linear layer then has its own copy of its input, and of its weight
    copied = product_bytes < 4 or on_grid
    # norms and residuals, inputs of products
    per_token = 4 * 4 * D + 2 * 4 + (5 if copied else 2) * product_bytes * D
    if config.use_qk_norm:
        per_token += 4 * (
            (2 if config.qk_norm_weight else 1) * (q + kv) + H + config.num_key_value_heads
        )
    if config.gemma_blocks:  # norms of the results of attention and feed-forward
        per_token += 2 * 4 * (2 * D + 1)
    # queries, keys, values and their result; the feed-forward's
    per_token += product_bytes * (2 * (q + kv) + 4 * F)
    weights = block_matrices(config) * product_bytes if copied else 0
    return rows * seq_len * per_token + weights
