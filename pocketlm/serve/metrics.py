"""What the server counted, as Prometheus reads it."""

from collections import defaultdict

HELP = {
    "requests_total": ("counter", "Requests by route and status of HTTP."),
    "disconnects_total": ("counter", "Answers that were stopped because the client left."),
    "prompt_tokens_total": ("counter", "Tokens of prompts."),
    "completion_tokens_total": ("counter", "Tokens made."),
    "draft_tokens_total": ("counter", "Tokens that the draft model proposed."),
    "draft_accepted_total": ("counter", "Tokens of them that were taken."),
    "first_token_seconds_sum": ("counter", "Seconds from a request to its first token, summed."),
    "first_token_seconds_count": ("counter", "Requests that had a first token."),
    "answer_seconds_sum": ("counter", "Seconds from a request to the end of its answer, summed."),
    "answer_seconds_count": ("counter", "Answers that came to their end."),
    "requests_running": ("gauge", "Requests that are being answered."),
    "requests_waiting": ("gauge", "Requests that wait for a place."),
}
PREFIX = "pocketlm_"


class Metrics:
    """Written by the event loop's thread alone."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, name: str, amount: float = 1, **labels: str | int) -> None:
        self.values[name][_labels(labels)] += amount

    def text(self, running: int, waiting: int) -> str:
        """All of them; those that were never counted are 0."""
        self.values["requests_running"][""] = running
        self.values["requests_waiting"][""] = waiting
        lines = []
        for name, (kind, words) in HELP.items():
            lines += [f"# HELP {PREFIX}{name} {words}", f"# TYPE {PREFIX}{name} {kind}"]
            values = self.values.get(name) or ({} if name == "requests_total" else {"": 0})
            lines += [f"{PREFIX}{name}{labels} {value:g}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str | int]) -> str:
    """Labels as the format writes them; the names of routes hold nothing to escape."""
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""
