"""The answers of a conversation, to learn: ids, and which of them the assistant writes.

A template that marks generations says it. Else the conversation is rendered once, and where each
answer lies in the text follows from renderings of its beginnings, compared as texts: nothing is
encoded apart. A template that writes earlier turns otherwise than the last (it drops their
thinking) gives an example for each answer, with the history that the model meets when it answers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pocketlm.model.chat_template import ChatRefused, ChatTemplate, Rendering, Span
from pocketlm.model.conversation import REASONING, Conversation, Message, reasoning_of

MEANT = (*REASONING, "tool_calls", "tools")  # without these a conversation says something else
TAG = re.compile(r"<[^<>|\s]{1,30}>")  # what a prompt may open: <think>


@dataclass(frozen=True, kw_only=True)
class Example:
    """ids of a conversation up to its last learnt token, and for each whether it is learnt.

    ends: whether each answer in it ends in a token that ends answers. words_as_text: whether a
    message spells a special word, which is encoded as plain text. not_rendered: fields that the
    template does not use, and of how many messages.
    """

    ids: list[int]
    learnt: list[bool]
    ends: bool
    words_as_text: bool
    not_rendered: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Located:
    """A rendering, and in it the answers to learn. exact: as the template marks them, to the token.

    not_rendered: of the whole conversation, see Example.
    """

    rendering: Rendering
    spans: list[Span]
    exact: bool = False
    not_rendered: Mapping[str, int] = field(default_factory=dict)


def located(template: ChatTemplate, conversation: Conversation) -> list[Located]:
    """The renderings to learn from: one, or one for each answer where the template rewrites earlier
    turns.

    ChatRefused, with a reason to count, where the template refuses the conversation, ignores a
    field of it that means something, or leaves out part of an answer.
    """
    answers = [i for i, learn in enumerate(conversation.learnt) if learn]
    if not answers:
        raise ChatRefused("no answer to learn")
    ignored = template.ignores(conversation)
    speakers = any("name" in m for m in conversation.messages if m["role"] != "tool")
    for name in ignored:
        # a tool's is in the call too, and few templates repeat it
        of_speaker = name == "name" and speakers
        if name in MEANT or of_speaker or name.startswith("chat_template_kwargs"):
            raise ChatRefused(f'the chat template does not render "{name}"')
    return [
        replace(part, not_rendered=ignored) for part in _located(template, conversation, answers)
    ]


def _located(
    template: ChatTemplate, conversation: Conversation, answers: list[int]
) -> list[Located]:
    whole = template.render(conversation)
    parts = [_answer(template, conversation, i) for i in answers]
    consistent = all(
        part is not None and whole.text.startswith(part.rendering.text) and part.extends
        for part in parts
    )
    if template.marks_generations:
        return _marked(template, conversation, whole, answers, consistent)
    if consistent:
        return [Located(rendering=whole, spans=[part.span for part in parts if part is not None])]
    if None in parts:
        raise ChatRefused("an answer that nothing comes before has no place where it begins")
    return [
        Located(rendering=part.rendering, spans=[part.span]) for part in parts if part is not None
    ]


def _marked(
    template: ChatTemplate,
    conversation: Conversation,
    whole: Rendering,
    answers: list[int],
    consistent: bool,
) -> list[Located]:
    """By the template's own marks. Of a template that rewrites turns, the last mark of each
    beginning.
    """
    roles = [message["role"] for message in conversation.messages]
    marked = [i for i, role in enumerate(roles) if role == "assistant"]
    if len(whole.generations) == len(marked) and (consistent or len(marked) == 1):
        spans = [span for i, span in zip(marked, whole.generations, strict=True) if i in answers]
        return [Located(rendering=whole, spans=spans, exact=True)]
    if len(whole.generations) != len(marked) and answers == marked and consistent:
        return [Located(rendering=whole, spans=list(whole.generations), exact=True)]
    examples = []
    for i in answers:
        rendering = template.render(conversation.upto(i + 1))
        if not rendering.generations:
            raise ChatRefused("the chat template marks no generation", f"message {i}")
        examples.append(Located(rendering=rendering, spans=[rendering.generations[-1]], exact=True))
    return examples


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A conversation up to an answer. extends: its text goes on from that of the prompt before the
    answer.
    """

    rendering: Rendering
    span: Span
    extends: bool


def _answer(template: ChatTemplate, conversation: Conversation, number: int) -> _Part | None:
    """Where message `number` lies in the rendering that ends with it; None where that cannot be
    told.
    """
    upto = template.render(conversation.upto(number + 1))
    prompt = _prompt(template, conversation, number)
    if prompt is None:
        return _by_twin(template, conversation, number, upto)
    common = _shared_length(prompt.text, upto.text)
    opened = prompt.text[common:]
    message = conversation.messages[number]
    texts = [reasoning_of(message), message["content"]]
    if not opened.strip():
        body = _without_space(upto.shown[len(_shown_upto(upto, common)) :])
        if all(_without_space(text) in body for text in texts if text):
            return _Part(rendering=upto, span=(common, len(upto.text)), extends=not opened)
        opened = ""  # the template drops part of the answer, its thinking for one
    return _continued(prompt, opened, message, upto)


def _prompt(template: ChatTemplate, conversation: Conversation, number: int) -> Rendering | None:
    """What the model is asked with before it answers; None where the template does not begin with
    an answer.
    """
    try:
        return template.render(conversation.upto(number), add_generation_prompt=True)
    except ChatRefused:
        if number == 0:
            return None
        raise


def _by_twin(
    template: ChatTemplate, conversation: Conversation, number: int, upto: Rendering
) -> _Part | None:
    """An answer that nothing comes before: it begins where the same with another content begins to
    differ.
    """
    message = conversation.messages[number]
    other = {**message, "content": "\uf8e4" + message["content"]}
    twin = template.render(replace(conversation, messages=(*conversation.messages[:number], other)))
    common = _shared_length(twin.text, upto.text)
    if not message["content"] or not twin.text[common:].startswith("\uf8e4"):
        return None
    return _Part(rendering=upto, span=(common, len(upto.text)), extends=True)


def _continued(prompt: Rendering, opened: str, message: Message, upto: Rendering) -> _Part:
    """The answer as the model will have to write it after its prompt, where the template cuts its
    thinking.

    opened: what the prompt ends with beyond the rendered turn, such as "<think>\\n".
    """
    thinking, closing, answer = _thinking(message)
    _, _, tail = upto.text.rpartition(answer.strip()) if answer.strip() else ("", "", upto.text)
    if opened.strip() and not TAG.fullmatch(opened.strip()):
        raise ChatRefused("the chat template asks with other words than it shows above an answer")
    if not closing and opened.strip():
        raise ChatRefused("the prompt opens a thinking that the answer lacks", opened.strip())
    if not closing:
        raise ChatRefused("the chat template leaves out part of an answer")
    if upto.words or prompt.words:
        raise ChatRefused("special words in a conversation whose thinking the template cuts")
    written = f"{thinking}{closing}{answer.strip()}{tail}"
    text = prompt.text + (written if opened.strip() else f"<think>\n{written}")
    return _Part(
        rendering=Rendering(text=text, words=()), span=(len(prompt.text), len(text)), extends=False
    )


def _thinking(message: Message) -> tuple[str, str, str]:
    """(thinking, what closes it, the answer) of a message that has thinking, in a field or in its
    content.
    """
    content = message["content"]
    if reasoning := reasoning_of(message):
        return reasoning.strip("\n"), "\n</think>\n\n", content
    before, closing, after = content.partition("</think>")
    if not closing:
        return "", "", content
    space = re.match(r"\s*", after)
    return (re.sub(r"^\s*<think>\n?", "", before), closing + (space[0] if space else ""), after)


def _shared_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    unlike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unlike, min(len(one), len(other)))


def _without_space(text: str) -> str:
    return "".join(text.split())


def _shown_upto(rendering: Rendering, place: int) -> str:
    return Rendering(text=rendering.text[:place], words=rendering.words).shown


def example_of(part: Located, ids: list[int], places: list[Span], stop_ids: set[int]) -> Example:
    """The example of a rendering encoded as `ids`, whose parts of the text are `places`.

    A token is learnt where it overlaps an answer (transformers' rule for marked generations). What
    a template puts behind an answer's end, such as a line break, is not; nor is anything kept that
    follows the last learnt token.
    """
    learnt = [False] * len(ids)
    ends = True
    for begin, end in part.spans:
        inside = [i for i, (a, b) in enumerate(places) if b > begin and a < end]
        stops = [i for i in inside if ids[i] in stop_ids]
        ends = ends and bool(stops)
        written = inside if part.exact or not stops else inside[: inside.index(stops[-1]) + 1]
        for i in written:
            learnt[i] = True
    length = max((i for i, learn in enumerate(learnt) if learn), default=-1) + 1
    words = bool(part.rendering.words)
    return Example(
        ids=ids[:length],
        learnt=learnt[:length],
        ends=ends,
        words_as_text=words,
        not_rendered=part.not_rendered,
    )
