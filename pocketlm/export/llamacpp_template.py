"""How llama.cpp itself renders the chat template of a .gguf: asked of its server.

llama.cpp has a Jinja of its own. Where it writes another prompt than transformers does, the file
chats with other words than the model learnt, and nothing in the file can help that.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pocketlm.export.text_agreement import chat_texts
from pocketlm.model.tokenizer import Tokenizer

PROGRAM = Path(__file__).with_name("llamacpp_server.py")
LONGEST_SECONDS = 180
SHOWN = 160  # characters of a prompt in a message
CANNOT_OPEN = "llama.cpp's server does not open the file"


def unlike_prompts(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The conversations whose prompt llama.cpp renders otherwise from this file, each in words."""
    conversations = list(chat_texts(tokenizer))
    if not conversations:
        return []
    questions = [{"messages": messages} for messages, _ in conversations]
    answers = _asked(path, questions)
    # with a template of its own it does
    if isinstance(answers, str) and _asked(path, [], "chatml") == []:
        answers = f"{CANNOT_OPEN}, for its Jinja cannot run the chat template; give it another"
    if isinstance(answers, str):
        return [answers]
    notes = [
        _unlike(*conversation, answer, tokenizer)
        for conversation, answer in zip(conversations, answers, strict=True)
    ]
    return [words for words in notes if words]


def _unlike(
    messages: list[dict[str, str]], prompt: str, answer: dict[str, str], tokenizer: Tokenizer
) -> str | None:
    roles = ", ".join(message["role"] for message in messages)
    if "prompt" not in answer:
        return f"llama.cpp cannot render the chat template for {roles}: {answer['refused']}"
    llama_prompt = answer["prompt"]
    # it takes away the beginning that it adds itself
    if llama_prompt in (prompt, prompt.removeprefix(tokenizer.bos_token or "")):
        return None
    where = _apart(prompt, llama_prompt)
    return f"llama.cpp renders the chat template otherwise for {roles}: {where}"


def _asked(
    path: Path, questions: list[dict[str, Any]], template: str = ""
) -> list[dict[str, str]] | str:
    """The server's answers, or in words why there are none."""
    command = [sys.executable, "-P", str(PROGRAM), str(path), template]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (
            f"llama.cpp's server gave no answer in {LONGEST_SECONDS} s, so the chat template was "
            "not compared"
        )
    try:
        answers = json.loads(done.stdout)
    except ValueError:
        return (
            f"{CANNOT_OPEN}: it ended with status {done.returncode}; the chat template was not "
            "compared"
        )
    return f"{CANNOT_OPEN}: {answers['cannot_open']}" if isinstance(answers, dict) else answers


def _apart(prompt: str, llama_prompt: str) -> str:
    """The two prompts from shortly before their first difference."""
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, llama_prompt, strict=False)) if a != b),
        min(len(prompt), len(llama_prompt)),
    )
    start = max(0, same - 20)
    return f"{prompt[start : start + SHOWN]!r} here, {llama_prompt[start : start + SHOWN]!r} there"
