"""Reading 8,192 tokens with Pro's local and global layers against all global: time, its parts, and
the cache.

    python benchmarks/local_global.py                  one layer of each kind in turns, and Pro's 30
    from these
    python benchmarks/local_global.py --layers 10      a whole pass of the first 10 layers, 3 of
    them global, as 9 of 30
    python benchmarks/local_global.py --layers 10 --llamacpp      the same as q4_0 files, in
    llama.cpp
    python benchmarks/local_global.py --executorch     one int4 layer of each kind in ExecuTorch,
    and Pro's 30 from these

Random weights of Pro's width, float32, as generation reads a prompt. One JSON line each; a ratio
above 1 says how much longer all-global takes.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from generation import in_turns

from pocketlm.corpus.python_docs import read_language_reference
from pocketlm.export.gguf import write_gguf
from pocketlm.export.pte import write_pte
from pocketlm.inference.kv_cache import KVCache
from pocketlm.inference.open import opened
from pocketlm.model.kernels.sdpa import sliding_attention
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.presets import PRESETS
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, help="a whole pass of so many of Pro's layers")
    parser.add_argument(
        "--llamacpp", action="store_true", help="that pass alone, of 4-bit files in llama.cpp"
    )
    parser.add_argument("--executorch", action="store_true")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shared = {"tokens": options.tokens, "threads": options.threads}
    kinds = PRESETS["pro"].layer_types
    ids = torch.randint(1024, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    if options.llamacpp:
        in_llamacpp(kinds[: options.layers or 10], options.tokens, options.threads, options.repeats)
        return
    if options.executorch:
        in_executorch(options.tokens, options.threads, options.repeats)
        return
    if options.layers:
        mine, other = (
            partial(prefill, network, ids)
            for network in networks(kinds[: options.layers], options.tokens)
        )
        names = ("local_global_seconds", "all_global_seconds", "ratio")
        show(
            "whole pass",
            shared
            | {"layers": options.layers}
            | dict(zip(names, in_turns(mine, other, options.repeats), strict=True)),
        )
    local, everywhere = (
        partial(prefill, network, ids) for network in networks((LOCAL,), options.tokens)
    )
    names = ("local_seconds", "global_seconds", "ratio")
    layer = in_turns(local, everywhere, options.repeats)
    show("one layer", shared | dict(zip(names, layer, strict=True)))
    attention = in_turns(*attentions(options.tokens), options.repeats)
    show("its attention", shared | dict(zip(names, attention, strict=True)))
    share = kinds.count(GLOBAL) / len(kinds)
    mixed, mixed_attention = (
        share * full + (1 - share) * near for near, full, _ in (layer, attention)
    )
    figures = {"ratio": layer[1] / mixed, "attention_share": mixed_attention / mixed}
    figures |= {"attention_share_all_global": attention[1] / layer[1]}
    figures |= {
        "ratio_if_local_attention_took_no_time": layer[1] / (layer[1] - (1 - share) * attention[1])
    }
    show("Pro's layers, 9 of 30 global", shared | figures)
    pro = replace(PRESETS["pro"], max_position_embeddings=8000)
    sizes = [
        KVCache(c, 1, 8000, int8=True).num_bytes / 2**20
        for c in (pro, replace(pro, layer_types=()))
    ]
    show(
        "Pro's int8 cache of 8,000 tokens",
        {"MiB": sizes[0], "all_global_MiB": sizes[1], "ratio": sizes[0] / sizes[1]},
    )


def networks(kinds: tuple[str, ...], tokens: int) -> tuple[Transformer, Transformer]:
    """Layers of these kinds and of Pro's width, and the same weights with every layer global."""
    config = replace(
        PRESETS["pro"],
        vocab_size=1024,  # reading a prompt looks tokens up, and multiplies by no vocabulary
        num_hidden_layers=len(kinds),
        layer_types=kinds,
        max_position_embeddings=tokens,
    )
    mixed, everywhere = (
        Transformer(config).eval(),
        Transformer(replace(config, layer_types=())).eval(),
    )
    everywhere.load_state_dict(mixed.state_dict(), assign=True)  # the same tensors: half the memory
    return mixed, everywhere


def in_llamacpp(kinds: tuple[str, ...], tokens: int, threads: int, repeats: int) -> None:
    """Until the first token after a prompt of `tokens` - 1, in two q4_0 files."""
    tokenizer = train_tokenizer([page.text for page in read_language_reference()], 1000)
    ids = torch.randint(300, (tokens - 1,), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        passes = []
        for name, network in zip(("mixed", "everywhere"), networks(kinds, tokens), strict=True):
            file = write_gguf(network, tokenizer, Path(scratch) / f"{name}.gguf", "q4_0")
            model = stack.enter_context(opened(file, threads=threads))
            passes.append(partial(first_token, model, ids))
        figures = dict(
            zip(
                ("local_global_seconds", "all_global_seconds", "ratio"),
                in_turns(*passes, repeats),
                strict=True,
            )
        )
    show(
        "whole pass, q4_0 in llama.cpp",
        {"tokens": tokens, "threads": threads, "layers": len(kinds)} | figures,
    )


def in_executorch(tokens: int, threads: int, repeats: int) -> None:
    """Until the first token after a prompt of `tokens` - 1, in two int4 programs of one layer
    each.
    """
    kinds = PRESETS["pro"].layer_types
    share = kinds.count(GLOBAL) / len(kinds)
    tokenizer = train_tokenizer([page.text for page in read_language_reference()], 1000)
    ids = torch.randint(300, (tokens - 1,), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        passes = []
        for name, network in zip(("local", "global"), networks((LOCAL,), tokens), strict=True):
            options: dict[str, Any] = {"context_length": tokens}
            file = write_pte(
                prepare(network, CPU), tokenizer, Path(scratch) / f"{name}.pte", **options
            )
            passes.append(
                partial(first_token, stack.enter_context(opened(file, threads=threads)), ids)
            )
        near, full, ratio = in_turns(*passes, repeats)
    figures = {"local_seconds": near, "global_seconds": full, "ratio": ratio}
    show("one layer, int4 in ExecuTorch", {"tokens": tokens, "threads": threads} | figures)
    show("Pro's layers, 9 of 30 global", {"ratio": full / (share * full + (1 - share) * near)})


def first_token(model: Any, ids: list[int]) -> int:
    return next(iter(model.stream(ids, max_new_tokens=1, stop_ids=set())))


@torch.inference_mode()
def prefill(network: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """All layers for all tokens: the saving of the last one would be no thirtieth here."""
    return network.hidden(ids, None, KVCache(network.config, *ids.shape))


def attentions(tokens: int) -> tuple[Callable, Callable]:
    """One attention of Pro's heads over the tokens, local and global."""
    pro, generator = PRESETS["pro"], torch.Generator().manual_seed(1)
    heads = (pro.num_attention_heads, pro.num_key_value_heads, pro.num_key_value_heads)
    q, k, v = (torch.randn(1, count, tokens, pro.head_dim, generator=generator) for count in heads)
    return (
        partial(sliding_attention, q, k, v, pro.sliding_window or tokens),
        partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True),
    )


def show(what: str, figures: dict) -> None:
    rounded = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    print(json.dumps({"what": what, **rounded}), flush=True)


if __name__ == "__main__":
    main()
