"""A client that costs next to nothing: HTTP/1.1 over asyncio's streams, one connection a client, clocks on what arrives.

Client and server share the machine, so a client's own milliseconds would be counted as the server's. Rejected: httpx and
aiohttp (0.5 to 2 ms of processor time a request).
"""

import asyncio
import time
from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Timed:
    status: int
    ttft_s: float
    """From the request's last byte out to the first byte of the answer's body."""
    seconds: float
    """To the end of the answer."""
    body: bytes
    headers: bytes


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int, *, key: str | None = None) -> None:
        self._host, self._port = host, port
        self._authorization = f"authorization: Bearer {key}\r\n" if key else ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def chat(self, text: str, *, model: str = "echo", **fields: object) -> Timed:
        """Stream one chat."""
        message = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **fields}
        return await self.post("/v1/chat/completions", orjson.dumps(message))

    async def post(self, path: str, body: bytes) -> Timed:
        """Send one request and read the whole answer; a broken connection is opened again for the next."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n{self._authorization}"
            f"content-length: {len(body)}\r\n\r\n"
        )
        try:
            began = time.perf_counter()
            writer.write(head.encode() + body)
            headers = await reader.readuntil(b"\r\n\r\n")
            status = int(headers.split(b" ", 2)[1])
            lower = headers.lower()
            pieces: list[bytes] = []
            first = 0.0
            if b"transfer-encoding: chunked" in lower:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    pieces.append((await reader.readexactly(size + 2))[:-2])
                    first = first or time.perf_counter()
                await reader.readexactly(2)
            else:
                length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                pieces.append(await reader.readexactly(length))
            ended = time.perf_counter()
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            raise
        if b"connection: close" in lower:
            self.close()
        return Timed(status, (first or ended) - began, ended - began, b"".join(pieces), headers)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
