"""A project's quotas: one token bucket for requests and one for tokens, filled continuously.

A bucket holds one minute's worth and fills at a minute's worth a minute, so in any t seconds it gives at most
limit · (1 + t / 60): a project that was quiet may use a minute's worth at once. What an answer costs in tokens is known
when it has ended. Until then a request holds back what the project's requests cost of late; the difference is settled
at the end, and a bucket that is overdrawn gives nothing until it is filled again. So what is used in the long run
never exceeds the limit, and a request larger than a whole minute's worth still gets its turn: it needs a full bucket.

Rejected: fixed windows (twice the limit around each border), and a log of every request (memory by traffic).
"""

from dataclasses import dataclass

_LEARN = 0.1
_FIRST_GUESS_TOKENS = 256.0


class TokenBucket:
    def __init__(self, per_minute: int, *, now: float) -> None:
        """A full one."""
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def limit(self, per_minute: int, now: float) -> None:
        """Change how much it holds and gets; what is in it stays."""
        self._level = min(per_minute, self.level(now))
        self.per_minute = per_minute

    def level(self, now: float) -> float:
        """What is in it; below zero where more was used than was held back."""
        if now > self._at:
            self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60.0)
            self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much can be taken; zero for now."""
        return max(0.0, (min(amount, self.per_minute) - self.level(now)) * 60.0 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """Take, or with a negative amount give back."""
        self._level = min(self.per_minute, self.level(now) - amount)


@dataclass(frozen=True, slots=True)
class Exceeded:
    """Why a request is not taken now."""

    what: str
    """`requests` or `tokens`."""
    per_minute: int
    retry_after_s: float


class Quota:
    """What a project may use, and uses."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None, *, now: float) -> None:
        self._requests = _limited(None, requests_per_minute, now)
        self._tokens = _limited(None, tokens_per_minute, now)
        self._usual_tokens = _FIRST_GUESS_TOKENS

    def limit(self, requests_per_minute: int | None, tokens_per_minute: int | None, *, now: float) -> None:
        """Change the limits; what was used stays used."""
        self._requests = _limited(self._requests, requests_per_minute, now)
        self._tokens = _limited(self._tokens, tokens_per_minute, now)

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Requests and tokens a minute."""
        return (
            None if self._requests is None else self._requests.per_minute,
            None if self._tokens is None else self._tokens.per_minute,
        )

    def reserve(self, prompt_tokens: float, now: float) -> float | Exceeded:
        """Take one request.

        Args:
            prompt_tokens: what the request has at least, estimated.

        Returns:
            Tokens that are held back for it: hand them to `settle`.
        """
        tokens = max(prompt_tokens, self._usual_tokens)
        for what, bucket, amount in (("requests", self._requests, 1.0), ("tokens", self._tokens, tokens)):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now)) > 0:
                return Exceeded(what, bucket.per_minute, wait_s)
        if self._requests is not None:
            self._requests.take(1.0, now)
        if self._tokens is None:
            return 0.0
        held = min(tokens, self._tokens.per_minute)
        self._tokens.take(held, now)
        return held

    def settle(self, held: float, used: int, now: float) -> None:
        """A request has ended: charge what it used instead of what was held back."""
        if self._tokens is not None:
            self._tokens.take(used - held, now)
            if used:
                self._usual_tokens += _LEARN * (used - self._usual_tokens)

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """The state in headers, as OpenAI names them."""
        found = []
        for name, bucket in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if bucket is not None:
                left = max(0, int(bucket.level(now)))
                values = ((b"limit", b"%d" % bucket.per_minute), (b"remaining", b"%d" % left))
                reset = f"{bucket.wait_s(bucket.per_minute, now):.3f}s".encode()
                found += [(b"x-ratelimit-%s-%s" % (kind, name), value) for kind, value in (*values, (b"reset", reset))]
        return found


def _limited(bucket: TokenBucket | None, per_minute: int | None, now: float) -> TokenBucket | None:
    if bucket is None or per_minute is None:
        return None if per_minute is None else TokenBucket(per_minute, now=now)
    bucket.limit(per_minute, now)
    return bucket
