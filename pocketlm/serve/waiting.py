"""How many requests are answered at once, and how many may wait for a place."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pocketlm.serve.refusal import Refusal

SHORTEST, LONGEST = 1, 60  # seconds after which a refused client is asked to come again


class Places:
    """slots: answers side by side. most: requests that may wait, first come first served."""

    def __init__(self, slots: int, most: int) -> None:
        self.slots, self.most = slots, most
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(slots)
        self._seconds = 1.0  # of an answer, a running mean

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one answer, waited for; a Refusal where too many wait already."""
        self.refuse_where_full()
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self._seconds += 0.2 * (time.monotonic() - start - self._seconds)
            self._free.release()

    def refuse_where_full(self) -> None:
        """Nothing, or a Refusal where no more may wait."""
        if self.waiting < self.most or not self._free.locked():
            return
        seconds = str(self.retry_after())
        raise Refusal(
            503,
            f"{self.running} requests are being answered and {self.waiting} wait, as many as may; "
            f"come again in {seconds} s",
            code="overloaded",
            headers={"Retry-After": seconds},
        )

    def retry_after(self) -> int:
        """Seconds until about half of those who wait have their place."""
        rounds = (self.waiting / 2 + 1) / self.slots
        return min(LONGEST, max(SHORTEST, math.ceil(rounds * self._seconds)))
