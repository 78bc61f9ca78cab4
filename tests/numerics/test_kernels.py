"""Attention kernels: each against one written-out mask in float64, and which of them is chosen.

FlexAttention runs in eager mode here, which torch allows for forward and backward on a CPU where
two checks of its are lifted. varlen_attn runs on CUDA alone: its shapes and gradients on meta
tensors, its meaning by a reference that reads the same cu_seqlens.
"""

import math
from dataclasses import replace

import pytest
import torch
from shapes import small
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask

from pocketlm.model.attention import find_documents
from pocketlm.model.batch import Batch
from pocketlm.model.kernels import blockwise, flex, sdpa, varlen
from pocketlm.model.kernels.choose import ATTENTION, KERNELS, choose_kernel
from pocketlm.model.kernels.kernel import AttentionCase, Documents, Kernel, first_keys
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.transformer import ComputeSettings, Transformer
from pocketlm.train.losses import next_token_loss
from pocketlm.train.optim import OptimConfig, compute_settings, describe

# B rows, T tokens, H heads, K kv heads, E head width

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
CASE = AttentionCase(
    device=CPU,
    dtype=torch.float64,
    rows=3,
    num_tokens=300,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)
HOPPER = replace(CASE, device=CUDA, dtype=torch.bfloat16, head_dim=64)
WINDOWS = [None, 1, 40, 128, 129, 300, 1000]
ON_CPU = {"sdpa": sdpa.SDPA, "blockwise": blockwise.BLOCKWISE, "flex": flex.FLEX}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packing(seed: int, rows: int = 3, length: int = 300) -> tuple[Tensor, Tensor]:
    """(positions, document ids) [B, T] of rows of documents of random lengths, 1 to 200 tokens."""
    generator = torch.Generator().manual_seed(seed)
    positions, doc_ids = torch.zeros(2, rows, length, dtype=torch.long)
    for row in range(rows):
        at = document = 0
        while at < length:
            size = int(torch.randint(1, (3, 60, 200)[row % 3], (), generator=generator))
            stop = min(at + size, length)
            positions[row, at:stop] = torch.arange(stop - at)
            doc_ids[row, at:stop] = document
            at, document = stop, document + 1
    return positions, doc_ids


def visible(positions: Tensor, doc_ids: Tensor, window: int | None) -> Tensor:
    """[B, T, T]: true where a query may see a key, by what the words say."""
    gap = positions[:, :, None] - positions[:, None]
    same = doc_ids[:, :, None] == doc_ids[:, None]
    return same & (gap >= 0) & (gap < (window or positions.shape[1]))


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """softmax(q k / sqrt(E)) v with an explicit mask [B, T, T]."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1) @ v


def inputs(case: AttentionCase) -> list[Tensor]:
    """q, k, v as the network hands them over: [B, T, heads, E] with two axes exchanged."""
    heads = (case.num_heads, case.num_kv_heads, case.num_kv_heads)
    return [
        drawn(case.rows, case.num_tokens, n, case.head_dim, seed=seed)
        .double()
        .transpose(1, 2)
        .requires_grad_()
        for seed, n in enumerate(heads)
    ]


@pytest.fixture(autouse=True)
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention uncompiled, with gradients, on a CPU."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


def agree(
    kernel: Kernel, case: AttentionCase, documents: Documents | None, allowed: Tensor
) -> None:
    """A kernel's values and gradients are those under the mask `allowed` [B or 1, T, T]."""
    q, k, v = tensors = inputs(case)
    upstream = drawn(*q.shape, seed=9).double()
    out = kernel.attend(q, k, v, kernel.prepare(case, documents))
    expected = reference(q, k, v, allowed)
    assert (out - expected).abs().max() <= 1e-13
    gradients = [torch.autograd.grad(x, tensors, upstream) for x in (out, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-12


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ON_CPU)
def test_a_kernel_gives_the_values_and_gradients_of_the_mask_on_random_packings(name, window):
    case = replace(CASE, window=window, packed=True)
    positions, doc_ids = packing(seed=window or 0)
    documents = find_documents(positions, doc_ids)
    assert documents is not None
    agree(ON_CPU[name], case, documents, visible(positions, doc_ids, window))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ON_CPU)
def test_a_kernel_gives_the_values_and_gradients_of_the_mask_on_whole_rows(name, window):
    place = torch.arange(300)[None]
    allowed = visible(place, torch.zeros_like(place), window)
    agree(ON_CPU[name], replace(CASE, window=window), None, allowed)


# ---- flex: which blocks are read ----


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300, 512])
@pytest.mark.parametrize("window", [None, 1, 128, 129, 200])
def test_blocks_are_those_that_torch_finds_in_a_mask_of_all_pairs(length, window):
    positions, doc_ids = packing(seed=length, length=length)
    documents = find_documents(positions, doc_ids)
    case = replace(CASE, num_tokens=length, window=window, packed=True)
    assert documents is not None
    own = flex.block_mask(first_keys(case, documents.starts).int())
    allowed = visible(positions, doc_ids, window)
    torchs = create_block_mask(
        lambda row, head, query, key: allowed[row, query, key], 3, None, length, length, CPU
    )
    # all that must be read is read, and nothing else
    assert torch.equal(own.to_dense(), torchs.to_dense())
    for kind in ("kv", "q"):  # by queries and, for the backward pass, by keys
        name = f"full_{kind}_num_blocks"
        assert torch.equal(getattr(own, name), getattr(torchs, name)), name
    assert own.seq_lengths == (length, length)


def test_the_blocks_of_a_long_row_take_a_thousandth_of_a_mask_of_all_pairs():
    length = 32_768
    positions, doc_ids = packing(seed=1, rows=1, length=length)
    documents = find_documents(positions, doc_ids)
    case = replace(CASE, rows=1, num_tokens=length, packed=True)
    blocks = flex.prepare(case, documents)
    lists = [
        getattr(blocks, f"{full}{kind}_{what}")
        for full in ("", "full_")
        for kind in ("kv", "q")
        for what in ("num_blocks", "indices")
    ]
    assert sum(x.numel() * x.element_size() for x in lists) <= length**2 / 1000


# ---- varlen ----


def varlen_reference(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size, enable_gqa):
    """What varlen_attn's documentation says, on the CPU: documents one by one, keys from
    window_size[0] before the query (all if -1) to window_size[1] after it.
    """
    assert torch.equal(cu_q, cu_k) and cu_q.dtype == torch.int32 and window_size[1] == 0
    assert enable_gqa == (q.shape[1] != k.shape[1])
    parts = []
    for begin, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        assert end - begin <= min(max_q, max_k)
        gap = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        before = end if window_size[0] == -1 else window_size[0]
        queries, keys, values = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        if end > begin:
            allowed = ((gap >= 0) & (gap <= before))[None]
            parts.append(reference(queries, keys, values, allowed)[0])
    return torch.cat([part.transpose(0, 1) for part in parts])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("packed", [False, True])
def test_varlen_means_the_mask(packed, window, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", varlen_reference)
    case = replace(CASE, window=window, packed=packed)
    positions, doc_ids = packing(seed=3)
    if not packed:
        positions, doc_ids = torch.arange(300).expand(3, -1), torch.zeros_like(doc_ids)
    documents = find_documents(positions, doc_ids) if packed else None
    agree(varlen.VARLEN, case, documents, visible(positions, doc_ids, window))


@pytest.mark.parametrize("window", [None, 40])
def test_varlen_has_the_shapes_and_dtypes_of_the_others_on_meta_tensors_compiled_too(window):
    case = replace(CASE, window=window, packed=True)
    prepared = varlen.prepare(case, find_documents(*packing(seed=3)))
    prepared = prepared._replace(cu_seqlens=prepared.cu_seqlens.to(META))
    shape = (case.rows, case.num_tokens, case.head_dim)
    for attend in (
        varlen.attend,
        torch.compile(varlen.attend, backend="aot_eager", fullgraph=True),
    ):
        q, k, v = tensors = [
            torch.empty(
                shape[0], shape[1], n, shape[2], device=META, dtype=torch.bfloat16
            ).requires_grad_()
            for n in (4, 2, 2)
        ]
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), prepared)
        assert out.shape == (3, 4, 300, 16) and out.dtype == torch.bfloat16
        # [B, T, H x E] for the next product takes no copy
        assert out.transpose(1, 2).is_contiguous()
        out.sum().backward()
        assert [x.grad.shape for x in tensors if x.grad is not None] == [x.shape for x in tensors]


def test_cu_seqlens_has_few_lengths_whatever_the_documents():
    sizes = set()
    for seed in range(6):
        positions, doc_ids = packing(seed)
        documents = find_documents(positions, doc_ids)
        assert documents is not None
        ends = documents.cu_seqlens
        count = int((positions == 0).sum())
        assert ends[:count].tolist() == (positions == 0).flatten().nonzero()[:, 0].tolist()
        assert (ends[count:] == 900).all() and len(ends) > count
        sizes.add(len(ends))
    assert sizes <= {129, 257, 513} and len(sizes) < 3


# ---- the choice ----


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (replace(CASE, dtype=torch.bfloat16), "sdpa"),
        (replace(CASE, head_dim=64), "blockwise"),  # 300 tokens
        (replace(CASE, head_dim=64, num_tokens=1024), "sdpa"),
        (replace(CASE, num_tokens=1024, window=128), "blockwise"),
        (replace(CASE, num_tokens=1024, window=1024), "sdpa"),
        (replace(CASE, num_tokens=1024, packed=True), "blockwise"),
        (HOPPER, "sdpa"),
        (replace(HOPPER, packed=True), "varlen"),
        (replace(HOPPER, window=128), "varlen"),
        (replace(HOPPER, packed=True, num_tokens=131_072), "varlen"),
        (replace(HOPPER, packed=True, dtype=torch.float32), "flex"),
        (replace(HOPPER, packed=True, dtype=torch.float32, num_tokens=131_072), "flex"),
        (replace(HOPPER, packed=True, head_dim=20), "flex"),
        (replace(HOPPER, packed=True, head_dim=10), "sdpa"),  # up to 4,096 tokens
    ],
)
def test_auto_takes_the_fastest_kernel_that_serves_and_says_why(case, name):
    choice = choose_kernel("auto", case)
    assert (choice.kernel.name, bool(choice.reason)) == (name, True)


@pytest.mark.parametrize(
    ("name", "case", "advice"),
    [
        ("flex", CASE, "no backward pass on cpu; take blockwise"),
        ("varlen", CASE, "runs on CUDA alone, not on cpu; take blockwise"),
        ("varlen", replace(HOPPER, dtype=torch.float32), "compute_dtype=bfloat16 or take flex"),
        ("varlen", replace(HOPPER, head_dim=20), "multiple of 8 channels up to 256, not 20"),
        ("varlen", replace(HOPPER, head_dim=512), "take flex"),
        ("flex", replace(HOPPER, head_dim=8), "16 channels or more, not 8; take sdpa"),
        ("blockwise", HOPPER, "written for a CPU, not for cuda; take auto, varlen or flex"),
        ("sdpa", replace(HOPPER, packed=True, num_tokens=8192), "8,192 tokens exceed"),
    ],
)
def test_a_kernel_that_cannot_serve_is_refused_by_name_with_what_to_take(name, case, advice):
    with pytest.raises(ValueError, match=f"attention={name} cannot serve") as error:
        choose_kernel(name, case)
    assert advice in str(error.value)


def test_a_mask_of_all_pairs_is_never_made_above_4096_tokens_on_a_gpu():
    narrow = replace(HOPPER, packed=True, head_dim=10, num_tokens=8192)
    with pytest.raises(ValueError, match="no attention kernel serves") as error:
        choose_kernel("auto", narrow)
    assert all(name in str(error.value) for name in ("varlen", "flex", "sdpa"))


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="attention 'fast' is unknown; known: auto, sdpa, flex"):
        choose_kernel("fast", CASE)
    assert set(ATTENTION) == {"auto", *KERNELS}


# ---- in the network ----

CONFIG = small(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.1,
    layer_types=(GLOBAL, LOCAL),
    sliding_window=40,
)


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "flex", replace(flex.FLEX, refusal=lambda case: None))


def batch_of(ids: Tensor) -> Batch:
    """Rows of documents of random lengths; labels are other tokens of the same document."""
    positions, doc_ids = packing(seed=1, rows=ids.shape[0])
    return Batch(input_ids=ids, labels=ids.roll(7), positions=positions, doc_ids=doc_ids)


@pytest.mark.parametrize("name", ON_CPU)
def test_every_kernel_trains_the_same_network(name, flex_on_cpu):
    ids = torch.randint(300, (3, 300), generator=torch.Generator().manual_seed(0))
    results = []
    for attention in ("auto", name):
        model = Transformer(CONFIG)
        model.compute = ComputeSettings(attention=attention)
        loss = next_token_loss(model, batch_of(ids))
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    for auto, named in zip(*results, strict=True):
        assert (auto - named).norm() <= 1e-5 * auto.norm()


@pytest.mark.parametrize("name", ON_CPU)
def test_a_changed_document_leaves_loss_and_gradient_of_the_others(name, flex_on_cpu):
    """To the bit: what is not seen is not read."""
    ids = torch.randint(300, (3, 300), generator=torch.Generator().manual_seed(0))
    batch = batch_of(ids)
    assert batch.doc_ids is not None
    where = batch.doc_ids[2] == 1  # of two or more in the row
    changed = ids.clone()
    changed[2, where] = (ids[2, where] + 1) % 300
    assert 0 < int(where.sum()) < 300
    # labels of the others alone
    labels = torch.where((torch.arange(3) == 2)[:, None] & where, -100, ids.roll(7))
    results = []
    for tokens in (ids, changed):
        model = Transformer(CONFIG)
        model.compute = ComputeSettings(attention=name)
        loss = next_token_loss(model, replace(batch, input_ids=tokens, labels=labels))
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


def test_the_progress_label_says_which_kernels_were_taken():
    optim = OptimConfig(
        lr=1e-3, num_steps=1, warmup_steps=0, final_lr_share=1.0, compute_dtype="float32"
    )
    model, ids = Transformer(CONFIG), torch.zeros(3, 300, dtype=torch.long)
    settings = compute_settings(model, optim)
    whole = Batch(input_ids=ids, labels=ids)
    assert describe(settings, CONFIG, whole, CPU) == "float32, sdpa+blockwise"
    assert describe(settings, CONFIG, batch_of(ids), CPU) == "float32, blockwise"
    settings = compute_settings(model, replace(optim, attention="sdpa", compile="yes"))
    assert describe(settings, CONFIG, batch_of(ids), CPU) == "float32, sdpa, compiled"
    with pytest.raises(ValueError, match="attention=varlen cannot serve"):
        describe(replace(settings, attention="varlen"), CONFIG, whole, CPU)


@pytest.mark.parametrize("name", ["sdpa", "blockwise"])
def test_documents_that_are_no_runs_take_a_mask_of_all_pairs(name):
    ids = torch.zeros(3, 300, dtype=torch.long)
    batch = batch_of(ids)
    assert batch.doc_ids is not None
    model = Transformer(CONFIG)
    model.compute = ComputeSettings(attention=name)
    again = batch.doc_ids.clone()
    again[:, -1] = 0  # the first document comes again
    if name == "sdpa":
        assert model.hidden(ids, batch.positions, doc_ids=again).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"attention=blockwise cannot serve .* take auto"):
        model.hidden(ids, batch.positions, doc_ids=again)
