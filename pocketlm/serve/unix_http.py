"""An HTTP request over a Unix socket, its answer read as it comes: all that is needed to speak with
a server of our own on this machine.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

LONGEST_LINE = 2**24  # an event with all its log-probabilities is one line


@dataclass(frozen=True, kw_only=True)
class Answer:
    """status: of HTTP. lines: of the body, as they come, without their ends."""

    status: int
    lines: AsyncIterator[bytes]


@asynccontextmanager
async def posted(socket: Path, target: str, body: bytes, key: str) -> AsyncIterator[Answer]:
    """The answer to a POST of JSON. The connection is closed at the end, which tells the server
    that nobody listens. OSError where it cannot be reached, or ends in the middle.
    """
    reader, writer = await asyncio.open_unix_connection(str(socket), limit=LONGEST_LINE)
    try:
        head = (
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        status = int((await _line(reader)).split()[1])
        headers = {}
        while line := await _line(reader):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        chunked = headers.get("transfer-encoding") == "chunked"
        yield Answer(status=status, lines=_lines(_blocks(reader, chunked)))
    except asyncio.IncompleteReadError:
        raise ConnectionError("the answer ends in the middle") from None
    finally:
        writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the answer ends in the middle")
    return line.rstrip(b"\r\n")


async def _blocks(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """The body's bytes as they come; one without chunks ends where the connection does."""
    if not chunked:
        while block := await reader.read(65536):
            yield block
        return
    while size := int((await _line(reader)).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await _line(reader)


async def _lines(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest
