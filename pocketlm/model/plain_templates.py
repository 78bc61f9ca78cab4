"""The chat templates that a base model is taught: ChatML, or Llama 3's or 4's turns, with thinking
and calls of tools.

Thinking stands in <think> tags and calls in <tool_call> tags as JSON, the words of Qwen's and
Hermes' templates, so that tools for those read them. A conversation that has neither is rendered as
in the plain originals.
"""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


def _template(before: str, header: str, end: str) -> str:
    """before: of the whole text, jinja. header: of a turn, jinja for it with ROLE in the place of
    the role. end: of a turn.
    """
    of_message, of_system, of_answer = (
        header.replace("ROLE", role) for role in ("message['role']", "'system'", "'assistant'")
    )
    tools = (
        "{% if tools %}{{ " + of_system + " + 'You may call these functions. Write each call as "
        '<tool_call>{"name": ..., "arguments": ...}</tool_call>.\\n\' }}'
        "{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ " + end + " }}{% endif %}"
    )
    thinking = (
        "{% if message['role'] == 'assistant' and message['reasoning_content'] %}"
        "{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
    )
    calls = (
        "{% for call in message['tool_calls'] or [] %}{% set called = call['function'] or call %}"
        "{{ '<tool_call>\\n{\"name\": \"' + called['name'] + '\", \"arguments\": ' }}{{ "
        "called['arguments'] | tojson }}"
        "{{ '}\\n</tool_call>' }}{% endfor %}"
    )
    return (
        f"{before}{tools}{{% for message in messages %}}{{{{ {of_message} }}}}{thinking}"
        f"{{{{ message['content'] }}}}{calls}{{{{ {end} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {of_answer} }}}}{{% endif %}}"
    )


CHATML = _template("", f"'{TURN_START}' + ROLE + '\\n'", f"'{TURN_END}' + '\\n'")
LLAMA3_HEADER = "<|start_header_id|>"
LLAMA3 = _template(
    "{{ bos_token }}", f"'{LLAMA3_HEADER}' + ROLE + '<|end_header_id|>\\n\\n'", "'<|eot_id|>'"
)
LLAMA4_HEADER = "<|header_start|>"
LLAMA4 = _template(
    "{{ bos_token }}", f"'{LLAMA4_HEADER}' + ROLE + '<|header_end|>\\n\\n'", "'<|eot|>'"
)
