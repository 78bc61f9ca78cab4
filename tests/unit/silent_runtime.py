"""A Runtime that answers nothing: tests give it the one or two methods that are asked."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pocketlm.inference.runtime import Memory


class SilentRuntime:
    """Every method fails, so that a test sees which ones are called."""

    tokenizer: Any = None
    max_length: int = 0

    def logits(self, *args: Any, **options: Any) -> np.ndarray:
        raise AssertionError("logits are not asked for")

    def log_probs(self, *args: Any, **options: Any) -> np.ndarray:
        raise AssertionError("log_probs are not asked for")

    def scorer(self) -> Any:
        raise AssertionError("no scores are asked for")

    def generate(self, *args: Any, **options: Any) -> list[list[int]]:
        raise AssertionError("answers are not asked for")

    def stream(self, *args: Any, **options: Any) -> Iterator[int]:
        raise AssertionError("no stream is asked for")

    def memory(self, *args: Any, **options: Any) -> Memory:
        raise AssertionError("memory is not asked for")

    def close(self) -> None:
        """Nothing to free."""
