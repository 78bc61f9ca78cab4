"""Reading 8,192 tokens with Pro's pattern of local and global layers against all global: time, its parts, and the cache.

    python benchmarks/local_global.py                  10 layers of Pro's width
    python benchmarks/local_global.py --layers 30      Pro itself: some minutes, 8 GB

Random weights; one pass over the prompt as generation makes it, the two networks in turns. Prints one JSON line each for
the whole pass and for one attention of each kind. A ratio above 1 says how much longer all-global takes.
"""

import argparse
import json
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from generation import in_turns

from pocketlm.model.generate import KVCache
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import ModelConfig, Transformer, banded_attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="the first 10 of 30 have 3 global ones, as 30 have 9")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    local = replace(
        PRESETS["pro"],
        num_hidden_layers=options.layers,
        layer_types=PRESETS["pro"].layer_types[: options.layers],
        max_position_embeddings=options.tokens,
    )
    network = Transformer(local).eval()
    everywhere = Transformer(replace(local, layer_types=())).eval()
    everywhere.load_state_dict(network.state_dict(), assign=True)  # the same tensors: half the memory
    ids = torch.randint(local.vocab_size, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    mine, other, ratio = in_turns(partial(prefill, network, ids), partial(prefill, everywhere, ids), options.repeats)
    shared = {"tokens": options.tokens, "layers": options.layers, "threads": options.threads}
    show("prefill", shared | {"local_global_s": mine, "all_global_s": other, "ratio": ratio})
    banded, full, ratio = in_turns(*attentions(local, options.tokens), options.repeats)
    show("attention of one layer", shared | {"local_s": banded, "global_s": full, "ratio": ratio})
    kinds = [local.window(i) is None for i in range(options.layers)]
    spent = sum(full if everything else banded for everything in kinds)
    rest = mine - spent
    show(
        "shares",
        shared
        | {"global_layers": sum(kinds), "attention_share_local_global": spent / mine}
        | {"attention_share_all_global": full * options.layers / other, "all_else_s": rest},
    )
    pro = replace(PRESETS["pro"], max_position_embeddings=8000)
    sizes = [KVCache(c, 1, 8000, int8=True).num_bytes / 2**20 for c in (pro, replace(pro, layer_types=()))]
    show("Pro's int8 cache of 8,000 tokens", {"MiB": sizes[0], "all_global_MiB": sizes[1], "ratio": sizes[0] / sizes[1]})


@torch.inference_mode()
def prefill(network: Transformer, ids: torch.Tensor) -> torch.Tensor:
    return network.hidden(ids, None, KVCache(network.config, *ids.shape), last=True)


def attentions(config: ModelConfig, tokens: int) -> tuple[partial, partial]:
    """One attention of Pro's heads over the tokens, local and global."""
    generator = torch.Generator().manual_seed(1)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    q, k, v = (torch.randn(1, count, tokens, config.head_dim, generator=generator) for count in heads)
    assert config.sliding_window is not None
    return (
        partial(banded_attention, q, k, v, config.sliding_window),
        partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True),
    )


def show(what: str, figures: dict) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


if __name__ == "__main__":
    main()
