"""A backend that answers with texts it was given: for what a page makes of them."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

from pocketlm.model.tokenizer import Tokenizer
from pocketlm.serve.backend import Piece, Wanted
from tests.serve.scripted import scripted_tokenizer


class SpokenBackend:
    """answers: by a word of the question; the first that fits is said, in pieces of a few letters.
    wait: seconds between two of them.
    """

    kind, max_length, slots, constrains = "spoken", 4096, 2, False

    def __init__(self, answers: Mapping[str, str], wait: float = 0.0) -> None:
        self.answers, self.wait = answers, wait
        self.tokenizer: Tokenizer = scripted_tokenizer()
        self.prompts: list[str] = []
        self.left_early = 0  # answers whose client left

    async def answer(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        prompt = self.tokenizer.decode(wanted.ids)
        self.prompts.append(prompt)
        question = prompt.rsplit("user", 1)[-1]
        text = next((said for word, said in self.answers.items() if word in question), "Hello.")
        ended = False
        try:
            for start in range(0, len(text), 6):
                await asyncio.sleep(self.wait)
                yield Piece(text=text[start : start + 6], tokens=1)
            ended = True
            yield Piece(text="", tokens=1, ended="stop")
        finally:
            self.left_early += not ended

    def healthy(self) -> bool:
        return True

    def close(self) -> None:
        pass
