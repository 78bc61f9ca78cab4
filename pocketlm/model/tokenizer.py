"""Text to ids and back, and conversations to (ids, which of them the assistant's).

Our own is byte-level BPE whose digits are single tokens; llama.cpp knows this pre-tokenizer as
"smollm". Chat follows ChatML. Others' are loaded by transformers' own classes
(`tokenizer_files.py`) and mean here what they mean there.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pocketlm.model.answers import Example, example_of, located
from pocketlm.model.chat_template import ChatRefused, ChatTemplate, MarkedEncoder, Rendering, Span
from pocketlm.model.conversation import Conversation, Message, plain
from pocketlm.model.endings import TEXT_ENDS, Endings, reconciled, turn_marks
from pocketlm.model.plain_templates import (
    CHATML,
    LLAMA3,
    LLAMA3_HEADER,
    LLAMA4,
    LLAMA4_HEADER,
    TURN_END,
    TURN_START,
)

END_OF_TEXT = "<|endoftext|>"
Answers = list[Example] | ChatRefused  # what is learnt of a conversation, or why nothing is


class Tokenizer:
    """Text <-> ids. `chat_template` (jinja) is None for a base model; conversations need one.

    Threads may share one: nothing in it changes while it encodes. Plain text goes through
    `backend`, which takes special words for text; what a chat template rendered through a second
    one, which takes them for tokens.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = END_OF_TEXT,
        eos_token: str = END_OF_TEXT,
        end_of_turn_token: str | None = TURN_END,
        chat_template: str | None = None,
        named_templates: Mapping[str, str] | None = None,
        stop_tokens: Mapping[str, Sequence[str]] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        adds_bos: bool = False,
        adds_eos: bool = False,
    ) -> None:
        """bos_token: None where there is none. end_of_turn_token: None takes what the chat template
        ends answers with.

        stop_tokens: further tokens that end an answer, with who says so. special_tokens: the names
        that a template may use (bos_token, unk_token, ...). adds_bos, adds_eos: what transformers
        and llama.cpp put around a plain text. named_templates: chat templates beside the default
        one, by name. ValueError for a token that the vocabulary lacks.
        """
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.bos_token, self.eos_token = bos_token, eos_token
        self.adds_bos, self.adds_eos = adds_bos, adds_eos
        self.named_templates = dict(named_templates or {})
        self._told_stops = dict(stop_tokens or {})
        self._told_turn_end = end_of_turn_token
        named = {"bos_token": bos_token, "eos_token": eos_token}
        self.notes: list[str] = []  # what was found in its files and not taken, for people
        self.special_tokens = dict(
            special_tokens or {k: v for k, v in named.items() if v is not None}
        )
        for token in (bos_token, eos_token, end_of_turn_token, *self._told_stops):
            if token is not None and backend.token_to_id(token) is None:
                raise ValueError(
                    f"tokenizer has no token {token!r}; name its own special tokens in "
                    "tokenizer_config.json"
                )
        self.chat_template = chat_template

    @property
    def chat_template(self) -> str | None:
        return self.template.source if self.template else None

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:
        self.template = (
            ChatTemplate(source, self.special_tokens, self.backend, self.named_templates)
            if source
            else None
        )
        self.endings: Endings = reconciled(
            self.backend,
            self.template,
            eos_token=self.eos_token,
            named=self._told_stops,
            end_of_turn=self._told_turn_end,
        )

    @cached_property
    def vocab_size(self) -> int:
        """The greatest id + 1: the rows an embedding needs. Ids between may be unused."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def bos_id(self) -> int | None:
        return None if self.bos_token is None else self._id(self.bos_token)

    @cached_property
    def eos_id(self) -> int:
        return self._id(self.eos_token)

    @property
    def end_of_turn_token(self) -> str:
        """The token that an answer is taught to end with."""
        return self.endings.end_of_turn

    @property
    def end_of_turn_id(self) -> int:
        return self._id(self.end_of_turn_token)

    @property
    def stop_ids(self) -> set[int]:
        """The ids at which an answer ends."""
        return {self._id(token) for token in self.endings.tokens}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(
            i for i, token in self.backend.get_added_tokens_decoder().items() if token.special
        )

    @property
    def document_start(self) -> list[int]:
        """What stands before each document, and before a plain text that a base model goes on with.

        The bos, unless it begins a turn (SmolLM2-Instruct's does); else the token that ends texts,
        where it ends no turn; [] where the tokenizer offers neither.
        """
        special = self._special()
        marks = turn_marks(self.template, special) | {TURN_START}
        if self.bos_token is not None and (self.adds_bos or self.bos_token not in marks):
            return [self._id(self.bos_token)]
        ends = (*TEXT_ENDS, self.eos_token)
        return next(([special[t]] for t in ends if t in special and t not in marks), [])

    def _special(self) -> dict[str, int]:
        decoder = self.backend.get_added_tokens_decoder()
        return {token.content: i for i, token in decoder.items() if token.special}

    def _id(self, token: str) -> int:
        number = self.backend.token_to_id(token)
        assert number is not None
        return number

    # ---- text ----

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Text that looks like a special token stays text: documents cannot
        forge a turn.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many plain texts, on all cores."""
        return [
            e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts whose special words are tokens, as what a chat template rendered."""
        encoded = self._chat_backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=not keep_special)

    # ---- conversations ----

    def encode_chat(
        self, messages: Sequence[Message] | Conversation, add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation through the chat template, ready for the assistant's next turn."""
        rendering = self._template().render(
            plain(messages), add_generation_prompt=add_generation_prompt
        )
        return self._encode([rendering])[0][0]

    def render(
        self, messages: Sequence[Message] | Conversation, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text, as transformers' apply_chat_template gives it."""
        rendering = self._template().render(
            plain(messages), add_generation_prompt=add_generation_prompt
        )
        return rendering.shown

    def answers(self, conversations: Sequence[Sequence[Message] | Conversation]) -> list[Answers]:
        """What is learnt of each conversation: its examples, or the ChatRefused that says why there
        are none.
        """
        template = self._template()
        parts: list[list] = []
        refused: dict[int, ChatRefused] = {}
        for number, conversation in enumerate(conversations):
            try:
                parts.append(located(template, plain(conversation)))
            except ChatRefused as error:
                refused[number] = error
                parts.append([])
        flat = [part for part_ids in parts for part in part_ids]
        encoded = iter(self._encode([part.rendering for part in flat]))
        stop_ids = self.stop_ids
        results: list[Answers] = []
        for number, of_one in enumerate(parts):
            pieces = [(part, next(encoded)) for part in of_one]
            examples = [example_of(part, ids, places, stop_ids) for part, (ids, places) in pieces]
            results.append(refused.get(number) or examples)
        return results

    def encode_conversations(
        self, conversations: Sequence[Sequence[Message] | Conversation]
    ) -> list[tuple[list[int], list[bool]]]:
        """(ids, which of them are learnt) of all examples of all conversations. ChatRefused where
        one has none.
        """
        examples = []
        for result in self.answers(conversations):
            if isinstance(result, ChatRefused):
                raise result
            examples += [(example.ids, example.learnt) for example in result]
        return examples

    def _template(self) -> ChatTemplate:
        if self.template is None:
            raise ValueError(
                "this tokenizer has no chat template: it belongs to a base model; fine-tune it "
                "first"
            )
        return self.template

    def _encode(self, renderings: Sequence[Rendering]) -> list[tuple[list[int], list[Span]]]:
        plain_ones = [r.text for r in renderings if not r.words]
        encoded = iter(self._chat_backend.encode_batch(plain_ones, add_special_tokens=False))
        results = []
        for rendering in renderings:
            if rendering.words:
                results.append(self._marked_encoder.encode(rendering))
            else:
                encoding = next(encoded)
                results.append((encoding.ids, encoding.offsets))
        return results

    @cached_property
    def _chat_backend(self) -> tokenizers.Tokenizer:
        """The same vocabulary, with special words taken for tokens."""
        return tokenizers.Tokenizer.from_str(self.backend.to_str())

    @cached_property
    def _marked_encoder(self) -> MarkedEncoder:
        return MarkedEncoder(self.backend)

    # ---- files ----

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads
        them.
        """
        from pocketlm.model.tokenizer_files import save_tokenizer

        save_tokenizer(self, folder)

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """The tokenizer of a folder: ours, or any that transformers opens; errors name the file."""
        from pocketlm.model.tokenizer_files import load_tokenizer

        return load_tokenizer(folder)


def plain_chat_template(tokenizer: Tokenizer) -> str:
    """The template a base model is taught: ChatML, or Llama 3's or 4's where the tokenizer has its
    header token.

    A tokenizer with neither gets ChatML whose turns end in its own end-of-turn token, so that
    answers end.
    """
    if tokenizer.backend.token_to_id(LLAMA3_HEADER) is not None:
        return LLAMA3
    if tokenizer.backend.token_to_id(LLAMA4_HEADER) is not None:
        return LLAMA4
    return CHATML.replace(TURN_END, tokenizer.end_of_turn_token)


def teach_chat_template(tokenizer: Tokenizer) -> None:
    """Gives a base model's tokenizer the plain chat template; one that has a template keeps it."""
    if tokenizer.chat_template is None:
        tokenizer.chat_template = plain_chat_template(tokenizer)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens (256 bytes and 3 specials included), learnt
    from `texts`.

    Digits are single tokens: at this size arithmetic is learnt digit by digit (measured in
    docs/log.md).
    """
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    if vocab_size < 256 + len(specials):
        raise ValueError(
            f"vocab_size {vocab_size} is below {256 + len(specials)}: every byte and the specials "
            "need an id"
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
    size = backend.get_vocab_size()
    if size != vocab_size:
        raise ValueError(
            f"the text only yields {size} tokens, vocab_size asks for {vocab_size}; lower it or "
            "add text"
        )
    return Tokenizer(backend)
