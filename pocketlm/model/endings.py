"""What ends an answer: everything that says so, brought together by one function.

transformers asks generation_config.json (else config.json), llama.cpp the metadata and the texts of
some tokens, a chat template writes what it writes. An answer that any of them ends, ends here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers

from pocketlm.model.chat_template import ChatRefused, ChatTemplate
from pocketlm.model.conversation import plain

# Special tokens that end an answer in whatever tokenizer they are: turn ends first, then ends of a
# text. llama.cpp knows them by their texts too.
TURN_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>"),
    *("<|eom_id|>", "<EOT>", "_<EOT>"),
)
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|endofdocument|>")


@dataclass(frozen=True, kw_only=True)
class Endings:
    """tokens: text of each token that ends an answer -> who says so. end_of_turn: the one the model
    is taught to write.
    """

    tokens: dict[str, tuple[str, ...]]
    end_of_turn: str

    def summary(self) -> str:
        """One line for people: the tokens, the taught one first, each with its sources."""
        order = sorted(self.tokens, key=lambda token: token != self.end_of_turn)
        return ", ".join(f"{token} ({', '.join(self.tokens[token])})" for token in order)


def reconciled(
    backend: tokenizers.Tokenizer,
    template: ChatTemplate | None,
    *,
    eos_token: str,
    named: Mapping[str, Sequence[str]],
    end_of_turn: str | None = None,
) -> Endings:
    """The endings of a tokenizer. named: tokens, with who names them, such as a file; end_of_turn:
    the one to teach, or None for what the template writes, else a known token, else eos.
    """
    tokens = {eos_token: ["the tokenizer's eos"]}
    for token, sources in named.items():
        tokens.setdefault(token, []).extend(sources)
    added = backend.get_added_tokens_decoder()
    special = {token.content: i for i, token in added.items() if token.special}
    of_template = template_end(template, [*(token.content for token in added.values()), eos_token])
    if of_template is not None:
        tokens.setdefault(of_template, []).append("the chat template")
    for token in ends_by_text(special):
        tokens.setdefault(token, []).append("by its text")
    if end_of_turn is None:
        end_of_turn = of_template or next(
            (t for t in ends_by_text(special) if t in TURN_ENDS), eos_token
        )
    tokens.setdefault(end_of_turn, ["given by the caller"])
    return Endings(
        tokens={token: tuple(dict.fromkeys(sources)) for token, sources in tokens.items()},
        end_of_turn=end_of_turn,
    )


def ends_by_text(special: Mapping[str, int]) -> list[str]:
    """Those of a tokenizer's special tokens that end an answer whatever its files say."""
    channels = special.keys() & {"<|call|>", "<|calls|>"} and special.keys() & {
        "<|return|>",
        "<|flush|>",
    }
    inner = {"<|end|>"} if channels else set()  # gpt-oss's: it ends a part of an answer
    return [token for token in (*TURN_ENDS, *TEXT_ENDS) if token in special and token not in inner]


def template_end(template: ChatTemplate | None, added: Sequence[str]) -> str | None:
    """The first added token that the template writes after an answer; None where it writes none, or
    renders nothing.
    """
    if template is None:
        return None
    answer = "an answer 4711"
    for opening in ([], [{"role": "system", "content": "a system"}]):
        messages = [*opening, {"role": "user", "content": "a question"}]
        try:
            text = template.render(
                plain([*messages, {"role": "assistant", "content": answer}])
            ).text
        except ChatRefused:
            continue
        _, answer_there, tail = text.rpartition(answer)
        places = [
            (tail.find(token), -len(token), token) for token in added if token and token in tail
        ]
        if answer_there:
            return min(places)[2] if places else None
    return None


def turn_marks(template: ChatTemplate | None, special: Mapping[str, int]) -> set[str]:
    """The special tokens that a template writes at each turn: more of them in a longer
    conversation.
    """
    if template is None:
        return set()
    turns = [
        {"role": "user", "content": "a question"},
        {"role": "assistant", "content": "an answer"},
    ]
    try:
        short, long = (template.render(plain(turns * n)).text for n in (1, 2))
    except ChatRefused:
        return set()
    return {token for token in special if long.count(token) > short.count(token)}
