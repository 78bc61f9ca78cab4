"""Text to ids and back, and conversations to (ids, which of them are the assistant's).

Byte-level BPE whose digits are single tokens; llama.cpp knows this pre-tokenizer as "smollm". Chat follows ChatML.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from jinja2 import Template
from tokenizers import decoders, models, pre_tokenizers, trainers

from pocketlm.model.files import read_json, write_json, write_text

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_HEADER = "<|start_header_id|>"
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA4_HEADER = "<|header_start|>"
LLAMA4 = (
    LLAMA3.replace("<|start_header_id|>", LLAMA4_HEADER)
    .replace("<|end_header_id|>", "<|header_end|>")
    .replace("<|eot_id|>", "<|eot|>")
)


class Tokenizer:
    """Text <-> ids. `chat_template` (jinja) is None for a base model; conversations need one."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = END_OF_TEXT,
        eos_token: str = END_OF_TEXT,
        end_of_turn_token: str = TURN_END,
        chat_template: str | None = None,
        stop_tokens: Iterable[str] = (),
        adds_bos: bool = False,
        special_tokens: dict[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.bos_token, self.eos_token, self.end_of_turn_token = bos_token, eos_token, end_of_turn_token
        self.chat_template = chat_template
        self.stop_tokens, self.adds_bos = tuple(stop_tokens), adds_bos
        self.special_tokens = dict(special_tokens or {})
        self._template: tuple[str, Template] | None = None
        for token in (bos_token, eos_token, end_of_turn_token, *self.stop_tokens):
            if token is not None and backend.token_to_id(token) is None:
                raise ValueError(
                    f"tokenizer has no token {token!r}; name its own special tokens in tokenizer_config.json"
                )

    @property
    def vocab_size(self) -> int:
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def bos_id(self) -> int | None:
        return None if self.bos_token is None else self._id(self.bos_token)

    @cached_property
    def document_start(self) -> list[int]:
        return [self.eos_id if self.bos_id is None else self.bos_id]

    @cached_property
    def eos_id(self) -> int:
        return self._id(self.eos_token)

    @cached_property
    def end_of_turn_id(self) -> int:
        return self._id(self.end_of_turn_token)

    @property
    def stop_ids(self) -> set[int]:
        """The ids at which an answer ends."""
        return {self.eos_id, self.end_of_turn_id, *map(self._id, self.stop_tokens)}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        assert found is not None
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Text that looks like a special token stays text: documents cannot forge a turn."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many plain texts, on all cores."""
        self.backend.encode_special_tokens = True
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=not keep_special)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation through the chat template, ready for the assistant's next turn."""
        return self._encode_template(self.render(messages, add_generation_prompt))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text. Contents that spell a special token are refused, for they would forge a turn."""
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template: it belongs to a base model; fine-tune it first")
        for message in messages:
            for token in self._special_tokens:
                if token in message["content"] or token in message["role"]:
                    raise ValueError(f"a message contains the special token {token!r}; remove it from the text")
        return self._compiled(self.chat_template).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )

    def encode_conversations(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[bool]]]:
        """For each conversation its ids, and for each id whether the assistant wrote it (its end of turn included).

        What comes before an answer and the answer are encoded apart, just as they are when a prompt is answered.
        What follows the last answer is left out. ValueError when the template rewrites earlier turns.
        """
        pieces: list[tuple[int, bool, str]] = []  # (conversation, the assistant's, text)
        for number, messages in enumerate(conversations):
            text = ""
            for turn, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                before = self.render(messages[:turn], add_generation_prompt=True)
                upto = self.render(messages[: turn + 1])
                if not (before.startswith(text) and upto.startswith(before)):
                    raise ValueError(
                        "the chat template rewrites earlier turns: the assistant's part cannot be told apart"
                    )
                pieces += [(number, False, before[len(text) :]), (number, True, upto[len(before) :])]
                text = upto
        self.backend.encode_special_tokens = False
        encoded = self.backend.encode_batch_fast([text for *_, text in pieces], add_special_tokens=False)
        found: list[tuple[list[int], list[bool]]] = [([], []) for _ in conversations]
        for (number, own, _), encoding in zip(pieces, encoded, strict=True):
            ids, mask = found[number]
            ends = [i for i, token in enumerate(encoding.ids) if token in self.stop_ids]
            written = (
                (ends[-1] + 1 if ends else len(encoding.ids)) if own else 0
            )  # the newline after a turn is the template's
            ids += encoding.ids
            mask += [i < written for i in range(len(encoding.ids))]
        for ids, mask in found:
            last = max((i for i, own in enumerate(mask) if own), default=-1)
            del ids[last + 1 :], mask[last + 1 :]
        return found

    @cached_property
    def _special_tokens(self) -> list[str]:
        return [token for i in sorted(self.special_ids) if (token := self.backend.id_to_token(i))]

    def _compiled(self, template: str) -> Template:
        """The chat template, compiled in a sandbox: it comes from a file a user was handed."""
        if self._template is None or self._template[0] != template:
            from jinja2.sandbox import ImmutableSandboxedEnvironment

            environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            self._template = (template, environment.from_string(template))
        return self._template[1]

    def _encode_template(self, text: str) -> list[int]:
        self.backend.encode_special_tokens = False
        return self.backend.encode(text, add_special_tokens=False).ids

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads them."""
        write_text(folder / "tokenizer.json", self.backend.to_str())
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.end_of_turn_token if self.chat_template else self.eos_token,
            "pad_token": self.eos_token,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "pocketlm": {"eos_token": self.eos_token, "end_of_turn_token": self.end_of_turn_token},
        }
        write_json(folder / "tokenizer_config.json", config)
        if self.chat_template:
            write_text(folder / "chat_template.jinja", self.chat_template)

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """The tokenizer of a folder: ours, or any with a fast tokenizer.json; errors name the file."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file}: not a tokenizer the `tokenizers` library reads ({error})") from None
        config_file = folder / "tokenizer_config.json"
        config = read_json(config_file) if config_file.is_file() else {}
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
        own = config.get("pocketlm", {})
        eos = own.get("eos_token") or _name(config.get("eos_token")) or END_OF_TEXT
        return Tokenizer(
            backend,
            bos_token=_name(config.get("bos_token")) or eos,
            eos_token=eos,
            end_of_turn_token=own.get("end_of_turn_token") or _turn_end(backend, eos),
            chat_template=template,
        )


def _name(token: object) -> str | None:
    """A special token's text: transformers writes it as a string or as {"content": ...}."""
    if isinstance(token, dict):
        return token.get("content")
    return token if isinstance(token, str) else None


def plain_chat_template(tokenizer: Tokenizer) -> str:
    """The template a base model is taught: ChatML, or Llama 3's or 4's where the tokenizer has its header token.

    A tokenizer with neither gets ChatML whose turns end in its own end-of-turn token, so that answers end.
    """
    if tokenizer.backend.token_to_id(LLAMA3_HEADER) is not None:
        return LLAMA3
    if tokenizer.backend.token_to_id(LLAMA4_HEADER) is not None:
        return LLAMA4
    return CHATML.replace(TURN_END, tokenizer.end_of_turn_token)


def _turn_end(backend: tokenizers.Tokenizer, eos: str) -> str:
    """The token that ends an assistant's turn: ChatML's or Llama 3's or 4's when there, else the end of text."""
    return next((t for t in (TURN_END, "<|eot_id|>", "<|eot|>") if backend.token_to_id(t) is not None), eos)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens (256 bytes and 3 specials included), learnt from `texts`.

    Digits are single tokens: at this size arithmetic is learnt digit by digit (measured in docs/log.md).
    """
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    if vocab_size < 256 + len(specials):
        raise ValueError(
            f"vocab_size {vocab_size} is below {256 + len(specials)}: every byte and the specials need an id"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size()
    if found != vocab_size:
        raise ValueError(f"the text only yields {found} tokens, vocab_size asks for {vocab_size}; lower it or add text")
    return Tokenizer(backend)


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """(tokens in id order, merges) in the byte-level alphabet: what a GGUF file stores."""
    content = json.loads(tokenizer.backend.to_str())
    size = tokenizer.vocab_size
    tokens = [tokenizer.backend.id_to_token(i) or f"<|unused_{i}|>" for i in range(size)]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]
    return tokens, [(left, right) for left, right in pairs]
