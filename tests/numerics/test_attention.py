"""Windows, caches, padding and packed documents: every path of attention against one written-out
mask in float64.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from shapes import small
from torch import Tensor

from pocketlm.inference.kv_cache import KVCache, int8_levels
from pocketlm.inference.torch_runtime import LanguageModel, left_padded
from pocketlm.model import attention
from pocketlm.model.attention import document_starts
from pocketlm.model.kernels import blockwise
from pocketlm.model.kernels.blockwise import blockwise_attention
from pocketlm.model.kernels.sdpa import sliding_attention
from pocketlm.model.model_config import GLOBAL, LOCAL, ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import Transformer

# B batch, T tokens, S keys, H heads, K kv heads, E head width

TOLERANCE = 1e-5  # float32 against float64, of outputs and logits of about one unit
WINDOW = 8
CONFIG = small(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.1,
    layer_types=(GLOBAL, LOCAL, LOCAL, GLOBAL),
    sliding_window=WINDOW,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """softmax(q k / sqrt(E)) v in float64 with an explicit mask [T, S]: the reference."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (
        q.double(),
        k.double().repeat_interleave(repeat, 1),
        v.double().repeat_interleave(repeat, 1),
    )
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v


def within(T: int, window: int) -> Tensor:
    """[T, T]: true where a key is at most window - 1 tokens back, written as a loop over pairs."""
    return torch.tensor([[query - window < key <= query for key in range(T)] for query in range(T)])


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG).eval()


@pytest.mark.parametrize("window", [1, 2, 3, 4, 8, 11, 16, 31, 32])
@pytest.mark.parametrize("piece", [1, 5, 8, 40])
def test_attention_in_pieces_is_full_attention_under_the_window_mask(piece, window):
    attention = partial(sliding_attention, num_queries=piece)
    q, k, v = (
        drawn(2, 4, 32, 16, seed=1) * 2,
        drawn(2, 2, 32, 16, seed=2) * 2,
        drawn(2, 2, 32, 16, seed=3),
    )
    expected = masked_attention(q, k, v, within(32, window))
    assert (attention(q, k, v, window) - expected).abs().max() <= TOLERANCE
    exact = attention(q.double(), k.double(), v.double(), window)
    assert (exact - expected).abs().max() <= 1e-14
    # a query for the last tokens alone
    newest = attention(q[:, :, -3:].double(), k.double(), v.double(), window)
    assert (newest - expected[:, :, -3:]).abs().max() <= 1e-14
    rounded = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), window)
    assert rounded.dtype == torch.bfloat16 and (rounded - expected).abs().max() <= 0.1


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("int8", [False, True])
def test_the_last_token_alone_and_few_rows_at_a_time_are_what_the_full_pass_gives(length, int8):
    """A prompt as generation reads it, then token after token: each length beside a turn of the
    ring.
    """
    # weights large enough for the product of few rows
    config = replace(CONFIG, hidden_size=512, vocab_size=1024)
    network = Transformer(config).eval()
    prompts = [
        torch.randint(1, 1024, (n,), generator=torch.Generator().manual_seed(n)).tolist()
        for n in (length, 3, 11)
    ]
    wide = LanguageModel(network, None, int8_cache=int8)  # type: ignore[arg-type]
    with torch.inference_mode():
        cache = KVCache(config, 3, 70, int8=int8)
        hidden = wide._prefill(prompts, cache)
        place = torch.tensor([[len(prompt)] for prompt in prompts])
        for _ in range(20):
            logits = network.head(hidden)
            for row, prompt in enumerate(prompts):
                alone = (
                    network(torch.tensor([prompt]))[0, -1]
                    if not int8
                    else read_rounded(network, prompt)
                )
                assert (logits[row] - alone).abs().max() <= (0.05 if int8 else 5e-5)
                prompt.append(int(alone.argmax()))
            hidden = network.hidden(
                torch.tensor([[prompt[-1]] for prompt in prompts]), place, cache
            )[:, -1]
            place = place + 1


def read_rounded(network: Transformer, ids: list[int]) -> Tensor:
    """Logits of the last token, all read at once through an int8 cache in which every layer has a
    slot for each token.
    """
    return network(torch.tensor([ids]), None, KVCache(network.config, 1, len(ids), int8=True))[
        0, -1
    ]


LENGTHS = [[13, 1, 26, 24], [64], [9, 30, 1, 24]]  # of the documents of three rows


def packed(lengths: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(positions, document ids) of rows of documents."""
    doc_ids = torch.tensor(
        [[n for n, length in enumerate(row) for _ in range(length)] for row in lengths]
    )
    return torch.tensor([[i for length in row for i in range(length)] for row in lengths]), doc_ids


def pairs(positions: Tensor, doc_ids: Tensor, window: int | None) -> Tensor:
    """[B, 1, T, T]: true where a query may see a key, by what the words say."""
    gap = positions[:, :, None] - positions[:, None]
    near = (gap >= 0) & (gap < (window or positions.shape[1]))
    return (near & (doc_ids[:, :, None] == doc_ids[:, None]))[:, None]


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("piece", [1, 7, 16, 100])
# scores of a piece: rows alone, and all rows at a time
@pytest.mark.parametrize("together", [1, 2**20])
def test_training_attention_in_pieces_is_the_masked_one_forward_and_back(
    window, piece, together, monkeypatch
):
    """Documents of different lengths in each row, and none; values and gradients in float64."""
    monkeypatch.setattr(blockwise, "QUERIES", piece)
    monkeypatch.setattr(blockwise, "SCORES", together)
    positions, doc_ids = packed(LENGTHS)
    q, k, v = inputs = [
        drawn(3, heads, 64, 8, seed=heads).double().requires_grad_() for heads in (4, 2, 2)
    ]
    upstream = drawn(3, 4, 64, 8, seed=9).double()
    for begins, plain in (
        (document_starts(positions, doc_ids), False),
        (torch.zeros(1, 64, dtype=torch.long), True),
    ):
        assert begins is not None
        allowed = within(64, window or 64) if plain else pairs(positions, doc_ids, window)
        place = torch.arange(64)
        first = begins if window is None else torch.maximum(begins, place - (window - 1))
        own = blockwise_attention(q, k, v, first)
        expected = masked_attention(q, k, v, allowed)
        assert (own - expected).abs().max() <= 1e-14
        gradients = (torch.autograd.grad((out * upstream).sum(), inputs) for out in (own, expected))
        for mine, theirs in zip(*gradients, strict=True):
            assert (mine - theirs).abs().max() <= 1e-13


def test_pieces_in_bfloat16_are_as_near_the_exact_gradients_as_torchs_own_attention():
    q, k, v = exact = [
        drawn(2, heads, 300, 16, seed=heads).bfloat16().double().requires_grad_()
        for heads in (4, 2, 2)
    ]
    narrow = [x.detach().bfloat16().requires_grad_() for x in exact]
    upstream = drawn(2, 4, 300, 16, seed=9).bfloat16()

    def results(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]

    expected = results(masked_attention(q, k, v, within(300, 300)), exact)
    own = results(blockwise_attention(*narrow, torch.zeros(1, 300, dtype=torch.long)), narrow)
    q, k, v = narrow
    torchs = results(
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), narrow
    )
    for mine, theirs, right in zip(own, torchs, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - right).norm() <= 1.5 * (theirs - right).norm()


def test_documents_in_runs_need_no_mask_of_all_pairs_and_others_get_one(model):
    positions, doc_ids = packed(LENGTHS)
    begins = document_starts(positions, doc_ids)
    assert begins is not None and begins[0].unique().tolist() == [0, 13, 14, 40]
    again = doc_ids.clone()
    again[0, -3:] = 0  # the first document comes again
    assert document_starts(positions, again) is None
    assert document_starts(positions - 1, doc_ids) is None  # padding
    assert document_starts(positions * 2, doc_ids) is None
    ids = token_ids(3, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "document_starts", lambda *_: None)
        masked = model(ids, positions, doc_ids=doc_ids)
    assert (model(ids, positions, doc_ids=doc_ids) - masked).abs().max() <= TOLERANCE


def test_a_window_in_pieces_has_the_gradients_of_the_masked_one():
    q, k, v = inputs = [
        drawn(1, heads, 16, 8, seed=heads).double().requires_grad_() for heads in (4, 2, 2)
    ]
    weight = drawn(1, 4, 16, 8, seed=9).double()
    own = torch.autograd.grad(
        (sliding_attention(q, k, v, window=4, num_queries=5) * weight).sum(), inputs
    )
    expected = torch.autograd.grad(
        (masked_attention(q, k, v, within(16, 4)) * weight).sum(), inputs
    )
    for mine, theirs in zip(own, expected, strict=True):
        assert (mine - theirs).abs().max() <= 1e-14


@pytest.mark.parametrize("length", [5, 8, 16, 29, 40])
@torch.no_grad()
def test_the_path_in_pieces_and_the_path_of_explicit_positions_agree(model, length):
    """Lengths below, equal to, a multiple of, and beside the window."""
    ids = token_ids(3, length)
    positions = torch.arange(length).expand(3, length)
    assert (model(ids) - model(ids, positions)).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_local_layer_does_not_see_past_its_window(model):
    """One local layer: changing a token changes exactly the window's next outputs of that layer."""
    attention = model.model.layers[1].self_attn
    seen = []
    handle = attention.register_forward_hook(lambda module, args, output: seen.append(output))
    block = model.model.layers[0]
    # so that only one layer mixes tokens
    skip = block.register_forward_hook(lambda module, args, output: args[0])
    try:
        ids = token_ids(1, 32)
        other = ids.clone()
        other[0, 10] += 1 if ids[0, 10] < CONFIG.vocab_size - 1 else -1
        model(ids)
        model(other)
    finally:
        handle.remove()
        skip.remove()
    changed = (seen[0] - seen[1]).abs().amax((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == list(range(10, 10 + WINDOW))


@pytest.mark.parametrize("chunks", [(1,) * 24, (24,), (5, 1, 9, 8, 1), (16, 8)])
@torch.no_grad()
def test_decoding_from_a_cache_in_any_chunks_gives_the_logits_of_one_pass(model, chunks):
    ids = token_ids(2, 24)
    cache = KVCache(CONFIG, 2, 24)
    parts, at = [], 0
    for size in chunks:
        positions = torch.arange(at, at + size).expand(2, size)
        parts.append(model(ids[:, at : at + size], positions, cache))
        at += size
    assert (torch.cat(parts, 1) - model(ids)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 4, 7, 20])
@torch.no_grad()
def test_a_left_padded_batch_of_unequal_prompts_gives_each_row_its_own_logits(model, chunk):
    """Prefilled in chunks (some all padding), then decoded one token at a time past two windows."""
    prompts = [token_ids(length, seed=length).tolist() for length in (20, 3, 11, 1)]
    ids, positions = left_padded(prompts)
    new = token_ids(4, 18, seed=5)
    cache = KVCache(CONFIG, 4, 38)
    for at in range(0, 20, chunk):
        model(ids[:, at : at + chunk], positions[:, at : at + chunk], cache)
    place = positions[:, -1:]
    for step in range(18):
        place = place + 1
        logits = model(new[:, step : step + 1], place, cache)[:, 0]
        assert logits.isfinite().all()
        for row, prompt in enumerate(prompts):
            alone = model(torch.tensor([[*prompt, *new[row, : step + 1].tolist()]]))[0, -1]
            assert (logits[row] - alone).abs().max() <= TOLERANCE


@torch.no_grad()
def test_rows_kept_in_a_cache_go_on_as_if_the_others_had_never_been(model):
    ids = token_ids(3, 12)
    cache = KVCache(CONFIG, 3, 13)
    model(ids, torch.arange(12).expand(3, 12), cache)
    cache.keep_rows(torch.tensor([2, 0]))
    following = token_ids(2, 1, seed=4)
    logits = model(following, torch.full((2, 1), 12), cache)[:, 0]
    alone = model(torch.cat([ids[[2, 0]], following], 1))[:, -1]
    assert (logits - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("repeats", [1, 2])
@torch.no_grad()
def test_a_ring_that_has_wrapped_many_times_holds_what_the_window_needs(repeats, int8):
    """Ten windows, in pieces shorter, as long and longer than one."""
    config = replace(CONFIG, layer_repeats=repeats)
    network = Transformer(config).eval()
    ids = token_ids(2, 80)

    def read(*chunks: int, padding: int = 0) -> Tensor:
        cache, parts, at = KVCache(config, 2, 80 + padding, int8=int8), [], 0
        if padding:
            network(ids[:, :padding], torch.full((2, padding), -1), cache)
        for size in chunks:
            positions = (
                None if at == 0 and not padding else torch.arange(at, at + size).expand(2, size)
            )
            parts.append(network(ids[:, at : at + size], positions, cache))
            at += size
        assert at == 80
        return torch.cat(parts, 1)

    whole = read(80)
    error = (whole - network(ids)).abs().max()
    assert 1e-3 < error < 0.1 if int8 else error <= TOLERANCE
    # the last bit of a float turns an int8 level now and then
    noise = error / 2 if int8 else TOLERANCE
    for chunks in ((1,) * 80, (7, 8, 9, 1, 1, 30, 24), (50, *(1,) * 30)):
        assert (read(*chunks) - whole).abs().max() <= noise
    assert (read(33, *(1,) * 47, padding=5) - whole).abs().max() <= noise


def test_the_bytes_of_pros_cache_are_the_published_ones():
    """Pro: 14, 23 and 40 MiB at 2k, 4k and 8k tokens, and 117 with every layer global."""
    for tokens, mib in ((2000, 14.04), (4000, 22.83), (8000, 40.41)):
        assert KVCache(PRESETS["pro"], 1, tokens, int8=True).num_bytes / 2**20 == pytest.approx(
            mib, abs=0.005
        )
    everywhere = replace(PRESETS["pro"], layer_types=())
    assert KVCache(everywhere, 1, 8000, int8=True).num_bytes / 2**20 == pytest.approx(
        117.19, abs=0.005
    )
    assert (
        KVCache(PRESETS["pro"], 1, 2000).num_bytes
        == 4 * KVCache(PRESETS["pro"], 1, 2000, int8=True).num_bytes
    )


def test_an_int8_token_is_its_own_within_half_a_step():
    x = drawn(2, 3, 5, 8, seed=6) * torch.tensor([1e-4, 1.0, 50.0, 1.0, 0.0])[:, None]
    levels, scale, zero = int8_levels(x)
    assert scale.shape == zero.shape == (2, 1, 5, 1)
    step = (x.amax((1, 3)).clamp(min=0) - x.amin((1, 3)).clamp(max=0)) / 255
    error = ((levels.float() - zero) * scale - x).abs().amax((1, 3))
    assert (error <= 1.01 * step + 1e-6).all()  # half a step for the value, half for the zero point
    assert ((levels.float() - zero) * scale)[:, :, 4].abs().max() == 0


def test_a_full_cache_says_so(model):
    cache = KVCache(CONFIG, 1, 4)
    with pytest.raises(ValueError, match="5 tokens exceed the cache of 4"):
        model(token_ids(1, 5), torch.arange(5)[None], cache)


@pytest.mark.parametrize("restarting", [True, False])
@torch.no_grad()
def test_documents_of_a_packed_row_are_read_as_if_alone(model, restarting):
    """With positions that restart, and (RoPE being relative) with positions that run on."""
    lengths = [[13, 1, 26], [9, 30, 1]]
    ids = token_ids(2, 40)
    doc_ids = torch.tensor(
        [[n for n, length in enumerate(row) for _ in range(length)] for row in lengths]
    )
    positions = torch.tensor([[i for length in row for i in range(length)] for row in lengths])
    packed = model(ids, positions if restarting else None, doc_ids=doc_ids)
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            alone = model(ids[row : row + 1, start : start + size])[0]
            assert (packed[row, start : start + size] - alone).abs().max() <= TOLERANCE
            start += size


@torch.no_grad()
def test_without_document_ids_the_documents_of_a_row_see_each_other(model):
    ids = token_ids(1, 20)
    doc_ids = torch.tensor([[0] * 10 + [1] * 10])
    difference = (model(ids) - model(ids, doc_ids=doc_ids)).abs().amax(2)[0]
    assert difference[:10].max() <= TOLERANCE and difference[10:].min() > 0.01


def test_padding_and_other_documents_get_no_gradient(model):
    """Not even through a value times zero: what may not be looked at cannot be learnt from."""
    caught = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: caught.append(output.detach().requires_grad_()) or caught[-1]
    )
    try:
        positions = torch.tensor([[-1] * 4 + list(range(8)) + list(range(8))])
        doc_ids = torch.tensor([[0] * 12 + [1] * 8])
        logits = model(token_ids(1, 20), positions, doc_ids=doc_ids)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 15].sum(), caught[0])
    touched = gradient[0].abs().amax(1) > 0
    assert touched.nonzero().flatten().tolist() == [12, 13, 14, 15]


def test_pro_layers_are_one_global_to_three_local_and_the_last_is_global():
    kinds = ModelConfig.local_global(30)
    assert [i for i, kind in enumerate(kinds) if kind == GLOBAL] == [
        0,
        4,
        8,
        12,
        16,
        20,
        24,
        28,
        29,
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
        ),
        ({"head_dim": 15}, "head_dim 15 must be even"),
        ({"layer_types": (GLOBAL,)}, "layer_types names 1 layers, num_hidden_layers is 4"),
        (
            {"layer_types": (GLOBAL, "linear_attention", GLOBAL, GLOBAL)},
            "'linear_attention'; known are",
        ),
        ({"sliding_window": None}, "sliding_window must be set"),
    ],
)
def test_a_shape_that_cannot_be_built_says_which_field(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(
            **{**{name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}, **fields}
        )
