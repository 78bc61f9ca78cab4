"""A chat template, rendered by transformers' own renderer, and what in the result is text and what
is a token.

A text of a user is always text: words of it that spell a control token (a special token, or an
added token that the template itself writes) are hidden from the template behind placeholders, and
are encoded as plain characters.
"""

import bisect
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import tokenizers

from pocketlm.model.conversation import Conversation, Message, argument_texts, with_parsed_arguments

Span = tuple[int, int]  # first character and the one after the last
NONCE = secrets.token_hex(8)  # of this process: no file can know it, so no text can forge a token
GENERATION = re.compile(r"\{\%[-+]?\s*generation\s*[-+]?\%\}")
PLACEHOLDER = re.compile(f"\uf8e0{NONCE}:(\\d+)\uf8e1")


class ChatRefused(ValueError):
    """A conversation that a template cannot render, or of which nothing can be learnt. `reason`: in
    few words, to count.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered conversation. text: with placeholders for the control words of its messages,
    `words`.

    generations: the parts that the template marks as the assistant's ({% generation %}).
    """

    text: str
    words: tuple[str, ...]
    generations: tuple[Span, ...] = ()

    @property
    def shown(self) -> str:
        """The text as the model reads it."""
        return PLACEHOLDER.sub(lambda match: self.words[int(match[1])], self.text)


class ChatTemplate:
    """source: jinja. named: further templates by their names, of which transformers takes
    "tool_use" where there are tools.

    special_tokens: what the template knows as bos_token, eos_token and so on. control_words: see
    above.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        backend: tokenizers.Tokenizer,
        named: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.named, self.special_tokens = (
            source,
            dict(named or {}),
            dict(special_tokens),
        )
        added = backend.get_added_tokens_decoder().values()
        self.special = [token.content for token in added if token.special and token.content]
        everywhere = "\0".join((source, *self.named.values()))
        self.control = self.special + [
            token.content
            for token in added
            if not token.special and token.content and token.content in everywhere
        ]

    @cached_property
    def marks_generations(self) -> bool:
        return GENERATION.search(self.source) is not None

    def render(
        self, conversation: Conversation, *, add_generation_prompt: bool = False
    ) -> Rendering:
        """The conversation as text. ChatRefused with the template's own words where it refuses, or
        fails.
        """
        hidden = _Hidden(self)
        tools = [hidden.whole(tool) for tool in conversation.tools] if conversation.tools else None
        variables = hidden.whole(conversation.variables)
        # last: more of them, same numbers
        messages = [hidden.message(message) for message in conversation.messages]
        source = self.named.get("tool_use", self.source) if tools else self.source
        text, generations = _rendered(
            source, messages, tools, self.special_tokens | variables, add_generation_prompt
        )
        rendering = Rendering(text=text, words=tuple(hidden.words), generations=generations)
        if NONCE in PLACEHOLDER.sub("", text):
            raise ChatRefused(
                "the chat template takes a special word of a message apart", ", ".join(hidden.words)
            )
        encoded_twice = any(
            _as_json(text) in rendering.shown for text in argument_texts(conversation)
        )
        if encoded_twice:  # templates want objects; OpenAI's files have texts of JSON
            return self.render(
                with_parsed_arguments(conversation), add_generation_prompt=add_generation_prompt
            )
        return rendering

    def ignores(self, conversation: Conversation) -> dict[str, int]:
        """How many messages (or, of what stands beside them, conversations) have a field that makes
        no difference.
        """
        names = sorted(
            {name for message in conversation.messages for name in message} - {"role", "content"}
        )
        ignored: dict[str, int] = {}
        if not (names or conversation.tools or conversation.variables):
            return ignored
        with_all = self.render(conversation).text
        for name in names:
            messages = tuple(
                {k: v for k, v in m.items() if k != name} for m in conversation.messages
            )
            if self._renders(replace(conversation, messages=messages)) == with_all:
                ignored[name] = sum(name in message for message in conversation.messages)
        if conversation.tools and self._renders(replace(conversation, tools=None)) == with_all:
            ignored["tools"] = 1
        for name in conversation.variables:
            fewer = {key: value for key, value in conversation.variables.items() if key != name}
            if self._renders(replace(conversation, variables=fewer)) == with_all:
                ignored[f"chat_template_kwargs.{name}"] = 1
        return ignored

    def _renders(self, conversation: Conversation) -> str | None:
        try:
            return self.render(conversation).text
        except ChatRefused:
            return None


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _rendered(
    source: str,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any],
    add_generation_prompt: bool,
) -> tuple[str, tuple[Span, ...]]:
    """What transformers' renderer gives, in its own environment: a sandbox, for templates come in
    files people were handed.
    """
    import jinja2
    from transformers.utils import chat_template_utils

    marks = GENERATION.search(source) is not None
    # its annotation tells less than it gives
    render: Any = chat_template_utils.render_jinja_template
    try:
        (text,), generations = render(
            conversations=[messages],
            tools=tools,
            chat_template=source,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is no jinja: line {error.lineno}: {error.message}"
        ) from None
    except jinja2.TemplateError as error:
        raise ChatRefused(
            "the chat template refuses", (error.message or type(error).__name__)
        ) from None
    except RecursionError:
        raise ChatRefused("the chat template fails", "it calls itself without end") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ChatRefused("the chat template fails", f"{type(error).__name__}: {error}") from None
    return text, tuple(generations[0]) if marks and generations else ()


class _Hidden:
    """Puts placeholders for control words: in answers for special tokens alone, for they may hold
    tags such as <think>.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.words: list[str] = []
        self.of_answers, self.of_others = (
            re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
            for names in (template.special, template.control)
        )

    def message(self, message: Message) -> Message:
        pattern = self.of_answers if message["role"] == "assistant" else self.of_others
        return {
            key: value if key == "role" else self._walk(value, pattern)
            for key, value in message.items()
        }

    def whole(self, value: Any) -> Any:
        return self._walk(value, self.of_others)

    def _walk(self, value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, str):
            return pattern.sub(self._place, value)
        if isinstance(value, dict):
            # a template writes names too: a tool's parameters, as JSON
            return {
                self._walk(key, pattern): self._walk(item, pattern) for key, item in value.items()
            }
        return (
            [self._walk(item, pattern) for item in value]
            if isinstance(value, list | tuple)
            else value
        )

    def _place(self, match: re.Match[str]) -> str:
        self.words.append(match[0])
        return f"\uf8e0{NONCE}:{len(self.words) - 1}\uf8e1"


class MarkedEncoder:
    """Encodes renderings with placeholders: their words as plain characters, what the template
    wrote as tokens.

    All added tokens are plain text to its backend, and for each there is another one, whose name no
    text can hold, that stands for it where the template (or an answer, with a tag) wrote it. So the
    whole is encoded in one piece.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        content = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            token["special"] = True
        self.backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        self.ids: dict[int, int] = {}  # of the stand-ins: whose they are
        self.names: dict[str, str] = {}
        added = [
            (i, token) for i, token in backend.get_added_tokens_decoder().items() if token.content
        ]
        for number, (i, token) in enumerate(added):
            name = f"\uf8e2{NONCE}:{number}\uf8e3"
            stand_in = tokenizers.AddedToken(
                name,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            self.backend.add_tokens([stand_in])
            stand_in_id = self.backend.token_to_id(name)
            assert stand_in_id is not None
            self.ids[stand_in_id], self.names[token.content] = i, name
        self.backend.encode_special_tokens = True
        longest_first = sorted((token for _, token in added), key=lambda token: -len(token.content))
        words = "|".join(_as_pattern(token) for token in longest_first) or "(?!)"
        self.parts = re.compile(f"{PLACEHOLDER.pattern}|({words})")

    def encode(self, rendering: Rendering) -> tuple[list[int], list[Span]]:
        """(ids, the part of rendering.text that each stands for)."""
        pieces: list[str] = []
        places = [(0, 0)]  # (in the encoded text, in the rendering) where a piece begins
        length = at = written = 0
        for match in self.parts.finditer(rendering.text):
            new = rendering.words[int(match[1])] if match[1] is not None else self.names[match[2]]
            written += match[1] is None
            pieces += [rendering.text[at : match.start()], new]
            length += match.start() - at
            places += [(length, match.start()), (length + len(new), match.end())]
            length, at = length + len(new), match.end()
        pieces.append(rendering.text[at:])
        encoding = self.backend.encode("".join(pieces), add_special_tokens=False)
        ids = [self.ids.get(i, i) for i in encoding.ids]
        if sum(i in self.ids for i in encoding.ids) != written:
            raise ChatRefused(
                "this tokenizer does not let special words of messages be encoded as text"
            )
        return ids, [(_back(a, places), _back(b, places)) for a, b in encoding.offsets]


def _as_pattern(token: tokenizers.AddedToken) -> str:
    name = re.escape(token.content)
    return rf"(?<!\w){name}(?!\w)" if token.single_word else name


def _back(place: int, places: list[tuple[int, int]]) -> int:
    """The character of the rendering for one of the encoded text; inside of what was replaced, its
    end.
    """
    number = bisect.bisect_right(places, (place, 1 << 62)) - 1
    encoded, rendered = places[number]
    end = places[number + 1][1] if number + 1 < len(places) else rendered + place - encoded
    return min(rendered + place - encoded, end)
