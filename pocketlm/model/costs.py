"""What a network costs, from its shape alone: parameters, FLOPs of a forward pass, bytes kept for the backward pass.

A FLOP is half a multiply-add, so a product [N, I] x [I, O] is 2NIO. Attention is counted as it is computed: all T x T
pairs of a global layer (the upper half too, as published utilisations count it), the bands of a local one. Both agree
with torch's FlopCounterMode to the last FLOP, kept bytes with what autograd saves to the last byte (tests/unit/test_costs.py).

Shapes: B rows, T tokens, N = B x T, D hidden, H query heads, K kv heads, E head width, F feed-forward, V vocabulary
"""

from inspect import signature

from pocketlm.model.transformer import ModelConfig, sliding_attention

PIECE = (
    signature(sliding_attention).parameters["piece"].default
)  # queries of a local layer that are worked on at a time


def head_parameters(config: ModelConfig) -> int:
    """Weights of the token table, and so of the output head."""
    return config.vocab_size * config.hidden_size


def block_matrices(config: ModelConfig) -> int:
    """Weights of the linear layers of one block."""
    attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    return config.hidden_size * (attention + 3 * config.intermediate_size)


def num_parameters(config: ModelConfig) -> int:
    """All parameters, tied ones once."""
    norms = 2 * config.hidden_size + 2 * config.head_dim * (config.use_qk_norm and config.qk_norm_weight)
    tables = head_parameters(config) * (1 if config.tie_word_embeddings else 2)
    return tables + config.num_hidden_layers * (block_matrices(config) + norms) + config.hidden_size


def body_flops(config: ModelConfig, rows: int, seq_len: int, *, masked: bool = False) -> int:
    """Of one forward pass through the blocks; the backward pass takes twice as many. masked: rows are kept apart by documents."""
    products = 2 * rows * seq_len * block_matrices(config) * config.applications
    per_pair = 4 * rows * config.num_attention_heads * config.head_dim  # scores, and the weighted sum of values
    pairs = sum(attention_pairs(window, seq_len) for window in _windows(config, seq_len, masked))
    return products + per_pair * pairs


def head_flops(config: ModelConfig, tokens: int) -> int:
    """Of the logits of so many tokens, once."""
    return 2 * tokens * head_parameters(config)


def attention_pairs(window: int | None, seq_len: int) -> int:
    """Pairs of query and key that one head of a layer works out for a row; window None: a global layer."""
    if window is None:
        return seq_len**2
    pieces = [(first, min(PIECE, seq_len - first)) for first in range(0, seq_len, PIECE)]
    return sum(count * (count + min(first, window - 1)) for first, count in pieces)


def kept_bytes(
    config: ModelConfig,
    rows: int,
    seq_len: int,
    *,
    product_bytes: int,
    masked: bool = False,
    on_grid: bool = False,
    cpu: bool = True,
) -> int:
    """Bytes that the blocks of a forward pass leave for the backward pass: activations, and weights in another form.

    product_bytes: 2 or 4, of a number in matrix products. on_grid: weights and activations are rounded while training.
    """
    N, D, F = rows * seq_len, config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    copied = product_bytes < 4 or on_grid  # each linear layer then has its own copy of its input
    normed = 2 if config.qk_norm_weight else 1
    heads = config.num_attention_heads + config.num_key_value_heads
    per_token = 4 * 4 * D + 2 * 4 + (5 if copied else 2) * product_bytes * D  # norms and residuals, inputs of products
    if config.use_qk_norm:
        per_token += 4 * (normed * (q + kv) + heads)
    per_token += product_bytes * 4 * F + 4 * config.num_attention_heads
    weights = block_matrices(config) * product_bytes if copied else 0
    total = 0
    for window in _windows(config, seq_len, masked):
        float_here = 4 if window is not None and cpu else product_bytes  # sliding_attention widens on the CPU
        total += N * (per_token + float_here * 2 * (q + kv)) + weights
        if config.use_qk_norm or window is not None or on_grid:  # attention's output lies head by head: a copy of it
            total += N * product_bytes * q
        if masked:
            total += rows * seq_len**2 * product_bytes  # the mask, in the dtype of the scores
        elif window is not None:
            total += PIECE * (PIECE + window - 1) * float_here
    return total


def _windows(config: ModelConfig, seq_len: int, masked: bool) -> list[int | None]:
    """Of each application of a block; None where all pairs are worked out, as with a mask or a window that holds the row."""
    windows = [config.window(layer // config.layer_repeats) for layer in range(config.applications)]
    return [None if masked or window is None or window >= seq_len else window for window in windows]
