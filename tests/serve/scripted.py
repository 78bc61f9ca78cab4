"""A tiny network whose greedy answers are known, for a server's tests on every backend.

Its layers add nothing, so each token decides the next one: a chat is answered with ANSWER, and the
text "L" goes on with M, L, M, ... to the end of the context.
"""

import itertools
from pathlib import Path

import torch
from shapes import small

from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

VOCABULARY, CONTEXT = 280, 4096
THOUGHT, CONTENT = "why", "🚀é stop!"
ANSWER = f"<think>{THOUGHT}</think>{CONTENT}"
ANSWER_TOKENS = 16  # a tag is one, and so is " s"; the rocket is four
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def scripted_checkpoint(folder: Path) -> Path:
    """The checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    network, tokenizer = scripted_network()
    save_checkpoint(folder, network, tokenizer)
    return folder


def scripted_network() -> tuple[Transformer, Tokenizer]:
    tokenizer = scripted_tokenizer()
    config = small(
        vocab_size=VOCABULARY + len(TAGS),
        hidden_size=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    network = Transformer(config, seed=0).eval()
    assert network.lm_head is not None
    table = torch.randn(config.vocab_size, 64, generator=torch.Generator().manual_seed(0))
    table /= table.norm(dim=1, keepdim=True)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        network.model.embed_tokens.weight.copy_(table)
        network.lm_head.weight.copy_(0.1 * table)
        for token, following in following_tokens(tokenizer).items():
            network.lm_head.weight[following] += 3 * table[token]
    return network, tokenizer


def scripted_tokenizer() -> Tokenizer:
    trained = train_tokenizer(["a banana and a bandana, user assistant system"] * 4, VOCABULARY)
    backend = trained.backend
    backend.add_tokens(TAGS)
    return Tokenizer(backend, chat_template=CHATML)


def following_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Which token follows which: ANSWER and the end of the turn after the last token of a prompt,
    and the letters L and M each other.
    """
    words = [[tokenizer.backend.token_to_id(word)] for word in TAGS[:2]]
    chain = [
        *tokenizer.encode("\n"),
        *words[0],
        *tokenizer.encode(THOUGHT),
        *words[1],
        *tokenizer.encode(CONTENT),
        tokenizer.end_of_turn_id,
    ]
    assert len(set(chain)) == len(chain), "each token decides the next, so none may come twice"
    (first,), (second,) = tokenizer.encode("L"), tokenizer.encode("M")
    return {**dict(itertools.pairwise(chain)), first: second, second: first}
