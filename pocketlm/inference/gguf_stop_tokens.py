"""At which tokens llama.cpp ends an answer: those that a file names, and those that it knows by
their text.

`tests/numerics/test_llamacpp_text.py` asks llama.cpp itself about each of these texts.
"""

from collections.abc import Sequence
from typing import Any

ENDS = {  # llama.cpp's `special_eog_ids`, in any file that has a token of this text
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|ifm|im_end|>",
}
# of code with a gap: a file names one of each, or llama.cpp takes a token of these texts; it ends
# too
FILLERS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>", "<|plamo:file_separator|>"),
}
NAMED = ("eos", "eot", "eom")


def ends_by_text(tokens: Sequence[str]) -> set[int]:
    """The ids that end an answer for their text alone."""
    return _ends(tokens, {})


def ends_of_file(metadata: dict[str, Any], tokens: Sequence[str]) -> set[int]:
    """The ids at which llama.cpp ends an answer of a file with this metadata, all in its
    vocabulary.
    """
    ids = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in (*NAMED, *FILLERS)}
    return _ends(
        tokens, {role: i for role, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
    )


def _ends(tokens: Sequence[str], named: dict[str, int]) -> set[int]:
    place = {word: i for i, word in enumerate(tokens)}
    ends = {place[word] for word in ENDS if word in place} | set(named.values())
    for role, words in FILLERS.items():
        if role not in named:
            ends |= {place[word] for word in words if word in place}
    # harmony's and solar's <|end|> ends a part of an answer; Gemma 4 has a </s> that ends nothing
    calls = bool(place.keys() & {"<|call|>", "<|calls|>"})
    if "<|end|>" in place and calls and place.keys() & {"<|return|>", "<|flush|>"}:
        ends.discard(place["<|end|>"])
    if "<|tool_response>" in place and "</s>" in place:
        ends.discard(place["</s>"])
    return ends
