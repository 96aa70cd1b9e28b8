"""The door of the gateway: who asks, whether they may, and how much.

An ASGI middleware before every route: a request is let in by its API key (`Authorization: Bearer lr-…`), whose scopes must
hold for the path and whose project must have quota left. Where no key was ever made, the machine's own clients are served
and nobody else. Who is local is told by the connection alone: headers such as X-Forwarded-For are what a client likes to
write. `/healthz` and `/readyz` are open. A replica of the gateway counts for itself: with several, each grants the quota.

Rejected: FastAPI's dependencies (a route that forgets one is open), and reading the body here (what was used is charged
when it is known, see `quota`).
"""

import ipaddress
import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmray.errors import UnavailableError
from llmray.serve.keys import Keys
from llmray.serve.ports import Key, KeyRing
from llmray.serve.protocol import ApiError, registry_away
from llmray.serve.quota import Exceeded, Quota
from llmray.serve.request_log import notes

OPEN = frozenset({"/healthz", "/readyz"})
SCOPES = (("/v1/feedback", "feedback"), ("/v1/prompts", "prompts"), ("/metrics", "metrics"), ("/", "infer"))
"""Beginnings of paths, and the scope that a key needs for them: the first that fits."""
_BYTES_PER_TOKEN = 4.0


@dataclass(slots=True)
class Caller:
    """Who asks, for the account of what they get."""

    project: str | None = None
    key_id: str | None = None
    tokens: int = 0
    """Tokens that the answers to this request have had."""


caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Of the request that is being answered; None where nobody stands at the door."""


class AccessControl:
    def __init__(
        self, app: ASGIApp, ring: KeyRing, *, peers_known: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Stand before an application.

        Args:
            peers_known: whether a connection shows where a client is; not behind a proxy that connects for it.
            clock: monotonic seconds.
        """
        self._app = app
        self._keys = Keys(ring, clock=clock)
        self._peers_known = peers_known
        self._clock = clock
        self._quotas: dict[str, Quota] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in OPEN:
            await self._app(scope, receive, send)
            return
        quota = None
        try:
            key = await self._enter(scope, path)
            quota = None if key is None or scope["method"] != "POST" else self._quota(key)
            held = 0.0 if quota is None or key is None else self._reserve(quota, key, scope)
        except ApiError as error:
            await _refuse(send, error, [] if quota is None else quota.headers(self._clock()))
            return
        who = Caller() if key is None else Caller(key.project, key.id)
        notes().key_id = who.key_id
        reset = caller.set(who)
        try:
            await self._app(scope, receive, send if quota is None else self._with_headers(send, quota))
        finally:
            caller.reset(reset)
            if quota is not None:
                quota.settle(held, who.tokens, self._clock())

    async def _enter(self, scope: Scope, path: str) -> Key | None:
        """The key that lets a request in; None for a client of this machine where there are no keys."""
        try:
            if not await self._keys.any_keys():
                self._check_local(scope)
                return None
            token = _bearer(scope)
            key = None if token is None else await self._keys.key(token)
        except UnavailableError as error:
            raise registry_away() from error
        if token is None:
            raise ApiError(401, "no API key: send one as `Authorization: Bearer lr-…`", code="invalid_api_key")
        if key is None:
            raise ApiError(401, "this API key is wrong, expired or revoked", code="invalid_api_key")
        needed = next(name for beginning, name in SCOPES if path.startswith(beginning) or beginning == "/")
        if key.scopes and needed not in key.scopes:
            has = ", ".join(sorted(key.scopes))
            raise ApiError(403, f"this API key has the scopes {has}: {needed} is needed here", code="missing_scope")
        return key

    def _check_local(self, scope: Scope) -> None:
        if not self._peers_known:
            why = "and a proxy stands before it that hides who asks"
        elif not is_loopback((scope.get("client") or ("",))[0]):
            why = "so that it answers to its own machine alone"
        elif _for_a_foreign_page(scope):
            why = "so that pages of other sites cannot use it through a browser of its machine"
        else:
            return
        raise ApiError(
            401,
            f"this server has no API keys, {why}: make one with `llmray keys create PROJECT`",
            code="invalid_api_key",
        )

    def _quota(self, key: Key) -> Quota | None:
        limits = (key.requests_per_minute, key.tokens_per_minute)
        if limits == (None, None):
            return None
        quota = self._quotas.get(key.project)
        if quota is None:
            quota = self._quotas[key.project] = Quota(*limits, now=self._clock())
        elif quota.limits != limits:  # changed of late, and not every key knows it yet
            quota.limit(*limits, now=self._clock())
        return quota

    def _reserve(self, quota: Quota, key: Key, scope: Scope) -> float:
        length = _header(scope, b"content-length") or b""
        held = quota.reserve(
            int(length) / _BYTES_PER_TOKEN if length.isdigit() and len(length) < 16 else 0.0, self._clock()
        )
        if isinstance(held, Exceeded):
            raise ApiError(
                429,
                f"the project {key.project} has used its {held.per_minute} {held.what} a minute: "
                f"try again in {held.retry_after_s:.1f} s",
                code="rate_limit_exceeded",
                retry_after_s=held.retry_after_s,
            )
        return held

    def _with_headers(self, send: Send, quota: Quota) -> Send:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *quota.headers(self._clock())]
            await send(message)

        return with_headers


def is_loopback(host: str) -> bool:
    """Whether an address reaches only this machine. A name is one only if it is `localhost`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _for_a_foreign_page(scope: Scope) -> bool:
    """Whether a browser asks on behalf of another site, or by a name that only seems to be elsewhere (DNS rebinding)."""
    asked = [b"//" + host] if (host := _header(scope, b"host")) else []
    asked += [origin] if (origin := _header(scope, b"origin")) else []
    try:
        names = [urlsplit(one.decode("latin-1")).hostname or "" for one in asked]
    except ValueError:
        return True
    return _header(scope, b"sec-fetch-site") == b"cross-site" or not all(map(is_loopback, names))


async def _refuse(send: Send, error: ApiError, limits: list[tuple[bytes, bytes]]) -> None:
    notes().code = error.code
    body = orjson.dumps(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *limits]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _bearer(scope: Scope) -> str | None:
    scheme, _, token = (_header(scope, b"authorization") or b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for found, value in scope["headers"] if found == name), None)
