"""One end of a connection between two processes of ours: first each proves who it is, then pickles go by, each behind its length.

The secret itself is never sent: each end shows the HMAC of the other's challenge under it, with its own role, so that
what one end says cannot be thrown back at it. Until that is done nothing is unpickled. What is said is not encrypted.
Rejected: `multiprocessing.connection`, which does the same and blocks.
"""

import asyncio
import hmac
import pickle
import secrets
import socket
import struct
from abc import ABC, abstractmethod
from typing import Any, cast

PROOF_BYTES = 32
_LENGTH = struct.Struct("!I")
_VANISHED_S = 25
"""A machine that is gone without a word is noticed after this long."""


class Peer(asyncio.Protocol, ABC):
    """Either end of a connection: first the proofs, then frames."""

    def __init__(self) -> None:
        self.known = False
        self.challenge = secrets.token_bytes(PROOF_BYTES)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _VANISHED_S - 15),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 1000 * _VANISHED_S),  # keepalive says nothing while something is on its way
        ):
            if hasattr(socket, name):  # Linux has them all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.known:
            self.greet(self._buffer)
        if not self.known or self.closing:
            return
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(self._buffer, start)[0]
            if len(self._buffer) < end:
                break
            frame = bytes(self._buffer[start + _LENGTH.size : end])
            start = end
            self.receive(pickle.loads(frame))  # noqa: S301 - only of those who know the secret
        del self._buffer[:start]

    @abstractmethod
    def greet(self, said: bytearray) -> None:
        """Look at what came before the other end is known, take away what was read, and set `known`."""

    @abstractmethod
    def receive(self, frame: Any) -> None:
        """One frame of the other end's."""

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._transport is None or self._transport.is_closing()

    def send(self, value: object) -> None:
        packed = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self.write(_LENGTH.pack(len(packed)) + packed)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def proof(secret: bytes, role: str, challenge: bytes) -> bytes:
    """What shows that one of a role knows the secret."""
    return hmac.digest(secret, role.encode() + challenge, "sha256")


def taken(said: bytearray) -> bytes:
    """A challenge or proof, taken away from the beginning."""
    first = bytes(said[:PROOF_BYTES])
    del said[:PROOF_BYTES]
    return first
