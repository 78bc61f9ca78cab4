"""Speed of a model as a user meets it: the wait for the first token, and the pace after it."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

from pocketlm.inference.runtime import Runtime


def measure_speed(
    model: Runtime,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    *,
    report: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Medians over `repeats` runs, after one that is not counted, of greedy decoding for one user.

    time_to_first_token_seconds: from the call to the first new token, so prefill and one sample.
    prefill_tokens_per_second: prompt_tokens over that time. decode_tokens_per_second: new_tokens -
    1 over the rest. report: is called with the number of each run as it begins.
    """
    if min(prompt_tokens, repeats) < 1 or new_tokens < 2:
        raise ValueError("measure_speed needs at least 1 prompt token, 2 new tokens and 1 repeat")
    if prompt_tokens + new_tokens > model.max_length:
        raise ValueError(
            f"{prompt_tokens} prompt and {new_tokens} new tokens exceed the model's "
            f"{model.max_length}"
        )
    text = model.tokenizer.encode("The quick brown fox jumps over the lazy dog. ")
    prompt = [*model.tokenizer.document_start, *(text * prompt_tokens)][:prompt_tokens]
    firsts, paces = [], []
    for run in range(repeats + 1):
        if report is not None:
            report(f"run {run + 1} of {repeats + 1}")
        started = perf_counter()
        times = [
            perf_counter() for _ in model.stream(prompt, max_new_tokens=new_tokens, stop_ids=set())
        ]
        if len(times) != new_tokens:
            raise ValueError(
                f"the model gave {len(times)} of {new_tokens} tokens though no token stops it"
            )
        if run > 0:
            firsts.append(times[0] - started)
            paces.append((new_tokens - 1) / max(times[-1] - times[0], 1e-9))
    return {
        "prefill_tokens_per_second": prompt_tokens / max(median(firsts), 1e-9),
        "decode_tokens_per_second": median(paces),
        "time_to_first_token_seconds": median(firsts),
    }
