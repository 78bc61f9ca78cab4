"""Tiny random models of families that our own network does not hold, written by transformers; and a
batch of packed rows for their scores.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pocketlm.model.batch import IGNORE_INDEX, Batch
from pocketlm.model.tokenizer import Tokenizer

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": SIZES,
    "phi": SIZES,
    "stablelm": SIZES | {"num_key_value_heads": 2, "use_qkv_bias": True},
    "gemma2": SIZES
    | GROUPED
    | {"sliding_window": 16, "tie_word_embeddings": False},  # shorter than the texts; soft caps
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32},  # learned positions
    "bloom": SIZES | {"n_head": 4, "n_layer": 3},  # no positions but ALiBi
    "mamba": SIZES,  # a recurrent state, no keys and values
}

# families that differ in what they do between their last states and their logits, or in the states
TEACHERS: dict[str, dict[str, Any]] = FAMILIES | {
    "phi3": SIZES | {"num_key_value_heads": 2},
    "cohere": SIZES | {"num_key_value_heads": 2, "logit_scale": 0.5},
    "granite": SIZES | {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "mixtral": SIZES | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": SIZES
    | GROUPED
    | {"intermediate_size_mlp": 64, "num_local_experts": 4, "attention_chunk_size": 8},
    "bert": SIZES,  # sees later tokens
}


def save_family(kind: str, tokenizer: Tokenizer, folder: Path) -> None:
    """A random model of the family with a tokenizer of ours, all written by transformers; and a
    batch of packed rows for their scores.
    """
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TEACHERS[kind]))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=random)
    network.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token=tokenizer.eos_token
    ).save_pretrained(folder)


# documents of the two rows of BATCH; the last of the second is padding, without labels
LENGTHS = ((9, 14, 1, 16), (23, 11, 6))


def packed_batch() -> Batch:
    T = sum(LENGTHS[0])
    ids = torch.randint(SIZES["vocab_size"], (2, T), generator=torch.Generator().manual_seed(2))
    documents = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS]
    )
    documents[1, 34:] = -1
    labels = ids.roll(-1, 1)
    positions = torch.cat([torch.arange(n) for row in LENGTHS for n in row]).view(2, T)
    labels[positions.roll(-1, 1) == 0], labels[1, 34:] = IGNORE_INDEX, IGNORE_INDEX
    return Batch(input_ids=ids, labels=labels, positions=positions, doc_ids=documents)


BATCH = packed_batch()
