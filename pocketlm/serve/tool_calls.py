"""The calls of functions in an answer: <tool_call>{"name": ..., "arguments": ...}</tool_call>, the
words of Qwen's, Hermes' and our own templates.
"""

import json
import secrets
from collections.abc import Collection
from typing import Any

from pocketlm.inference.stop_strings import beginning_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Call = dict[str, Any]  # as OpenAI's API has it


class ToolCalls:
    """Splits the content of one answer. names: of the functions that may be called.

    What stands between the tags and is no call of one of them is text, tags and all.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.count = 0  # of calls so far
        self._held = ""
        self._trim = False  # white space behind a call sets it apart, and is no answer

    def give(self, text: str, *, final: bool = False) -> list[str | Call]:
        """Texts and calls that are now certain, in their order. final: no more comes."""
        text, parts = self._held + text, list[str | Call]()
        while OPEN in text:
            before, _, rest = text.partition(OPEN)
            if CLOSE not in rest:
                break
            inner, _, text = rest.partition(CLOSE)
            if call := self._call(inner):
                self._add(parts, before.rstrip())
                parts.append(call)
                self._trim = True
            else:
                self._add(parts, f"{before}{OPEN}{inner}{CLOSE}")
        certain = len(text) if final else self._certain(text)
        self._held = text[certain:]
        self._add(parts, text[:certain])
        return parts

    def _add(self, parts: list[str | Call], text: str) -> None:
        if text := text.lstrip() if self._trim else text:
            self._trim = False
            parts.append(text)

    def _certain(self, text: str) -> int:
        """How many characters cannot be part of a call, or of the white space before one."""
        end = text.find(OPEN)
        end = len(text) - beginning_of(text, (OPEN,)) if end < 0 else end
        return len(text[:end].rstrip())

    def _call(self, inner: str) -> Call | None:
        try:
            value = json.loads(inner)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("name") not in self.names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, str):  # the API has them as a text of JSON
            arguments = json.dumps(arguments, ensure_ascii=False)
        self.count += 1
        function = {"name": value["name"], "arguments": arguments}
        return {
            "index": self.count - 1,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": function,
        }


def call_grammar(tools: list[dict[str, Any]]) -> str:
    """A grammar of LLGuidance, for llama-server: one call of one of the tools, and nothing else."""
    calls = []
    for tool in tools:
        function = tool["function"]
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": function.get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return (
        f'%llguidance {{}}\nstart: "{OPEN}\\n" call "\\n{CLOSE}"\n'
        f"call: %json {json.dumps(schema)}\n"
    )
