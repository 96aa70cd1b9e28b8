"""A client for what OpenAI's own lacks: feedback, prompts, outputs, metrics, health. For answers, use the `openai` package.

Standard library only, so that it can be lifted into any service. Rejected: wrapping the `openai` client (its users
should not have to change anything to talk to llmray).
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmray.errors import InputError, LLMRayError, NotFoundError, UnavailableError

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One line of the metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One version of a prompt, as the gateway serves it."""

    name: str
    version: int
    digest: str
    messages: tuple[Mapping[str, str], ...]
    variables: tuple[str, ...]
    settings: Mapping[str, Any]
    labels: tuple[str, ...]
    """Labels that name it, alone or among others."""


class Client:
    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 30.0
    ) -> None:
        """Talk to the gateway at `url`, with or without `/v1` at its end.

        Args:
            api_key: as `llmray keys create` showed it; None for a gateway on this machine that asks for none.

        Raises:
            InputError: no HTTP URL.
        """
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url!r} is no URL of a gateway: try http://127.0.0.1:8000")
        self._root = url.rstrip("/").removesuffix("/v1")
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s

    def thumb(
        self, output_id: str, value: Literal["up", "down"], *, source: str = "user", rule: str | None = None
    ) -> str:
        """Say whether an answer was good; returns the feedback's id."""
        return self._feedback(output_id=output_id, kind="thumb", value=value, source=source, rule=rule)

    def rate(self, output_id: str, value: int, *, source: str = "user") -> str:
        """Rate an answer from 1 to 5; returns the feedback's id."""
        return self._feedback(output_id=output_id, kind="rating", value=value, source=source)

    def correct(self, output_id: str, text: str, *, source: str = "user", rule: str | None = None) -> str:
        """Give a better answer; returns the feedback's id."""
        return self._feedback(output_id=output_id, kind="correction", value=text, source=source, rule=rule)

    def prefer(
        self, better: str, worse: str, *, reason: str | None = None, source: str = "user", rule: str | None = None
    ) -> str:
        """Prefer one answer to another; returns the feedback's id.

        Args:
            rule: the rule that a simulated annotator followed; name such a one in `source`.
        """
        return self._feedback(
            output_id=better, other_output_id=worse, kind="preference", value=reason, source=source, rule=rule
        )

    def prompt(self, reference: str) -> Prompt:
        """The prompt that a reference names now.

        Raises:
            NotFoundError: no such prompt, version or alias.
        """
        return _prompt(self._ask("GET", f"/v1/prompts/{urllib.parse.quote(reference, safe='@:')}"))

    def prompts(self) -> list[Prompt]:
        """Every version of every prompt, newest first."""
        return [_prompt(found) for found in self._ask("GET", "/v1/prompts")["data"]]

    def put_prompt(
        self,
        name: str,
        messages: Sequence[Mapping[str, str]],
        *,
        settings: Mapping[str, Any] | None = None,
        message: str = "",
        author: str = "user",
    ) -> Prompt:
        """Make the next version of a prompt, unless one says just that already; `name@latest` moves to it."""
        said = {"message": message, "author": author}
        body = {"name": name, "messages": list(messages), "settings": settings or {}, **said}
        return _prompt(self._ask("POST", "/v1/prompts", body))

    def label_prompt(
        self,
        label: str,
        version: int | str | Mapping[str, float],
        *,
        evidence: str | None = None,
        actor: str = "user",
        reason: str = "",
    ) -> Mapping[str, float]:
        """Let `name@label` name a version, or several with weights; returns what it names now.

        Args:
            evidence: for a protected label: id of a gate's verdict, as `lr.record_verdict` gave it.

        Raises:
            NotFoundError: no such prompt or version.
            InputError: the label is protected and the evidence does not say to promote, or a share is not above zero.
        """
        named = {"versions": version} if isinstance(version, Mapping) else {"version": version}
        return self._label("POST", label, "", {**named, "evidence": evidence, "actor": actor, "reason": reason})

    def rollback_label(self, label: str, *, actor: str = "user", reason: str = "") -> Mapping[str, float]:
        """Let `name@label` name again what it named before; returns what it names now."""
        return self._label("POST", label, "/rollback", {"actor": actor, "reason": reason})

    def delete_label(self, label: str, *, actor: str = "user", reason: str = "") -> None:
        """Let `name@label` name nothing; its history stays."""
        self._label("DELETE", label, f"?{urllib.parse.urlencode({'actor': actor, 'reason': reason})}", None)

    def protect_label(self, label: str, *, actor: str = "user", reason: str = "") -> None:
        """Have `name@label` move only with a gate's evidence from now on; only the registry's side takes that back."""
        self._label("POST", label, "/protection", {"actor": actor, "reason": reason})

    def output(self, output_id: str) -> Mapping[str, Any]:
        """All that made an answer: prompt version, variables, model digest, sampling, documents, cost and the rest.

        Raises:
            NotFoundError: no such output.
        """
        return self._ask("GET", f"/v1/outputs/{urllib.parse.quote(output_id, safe='')}")

    def models(self) -> list[Mapping[str, Any]]:
        """What is served: each with its variants, their digests and weights."""
        return list(json.loads(self._call("GET", "/v1/models"))["data"])

    def metrics(self) -> list[Sample]:
        """Every figure of the gateway."""
        samples = []
        for line in self._call("GET", "/metrics").decode().splitlines():
            if match := _SAMPLE.fullmatch(line):
                labels = {name: json.loads(f'"{value}"') for name, value in _LABEL.findall(match[2] or "")}
                samples.append(Sample(name=match[1], labels=labels, value=float(match[3])))
        return samples

    def healthy(self) -> bool:
        """Whether a gateway with a model answers."""
        try:
            self._call("GET", "/readyz")
        except UnavailableError:
            return False
        return True

    def _feedback(self, **body: Any) -> str:
        body = {name: value for name, value in body.items() if value is not None} | {"value": body["value"]}
        return str(json.loads(self._call("POST", "/v1/feedback", body))["id"])

    def _label(self, method: str, label: str, rest: str, body: Mapping[str, Any] | None) -> Mapping[str, float]:
        name, at, alias = (urllib.parse.quote(part, safe="") for part in label.partition("@"))
        if not at:
            raise InputError(f"{label!r} is no label: write name@label, such as ask-docs@production")
        versions: Mapping[str, float] = self._ask(method, f"/v1/prompts/{name}/labels/{alias}{rest}", body)["versions"]
        return versions

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return dict(json.loads(self._call(method, path, body)))

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        request = urllib.request.Request(  # noqa: S310 (the scheme was checked)
            self._root + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", **self._headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:  # noqa: S310
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read()) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise UnavailableError(f"no gateway answers at {self._root}: {error}") from error


def _prompt(found: Mapping[str, Any]) -> Prompt:
    return Prompt(
        name=found["name"],
        version=found["version"],
        digest=found["digest"],
        messages=tuple(found["messages"]),
        variables=tuple(found["variables"]),
        settings=found["settings"],
        labels=tuple(found["labels"]),
    )


def _refusal(status: int, body: bytes) -> LLMRayError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:500]
    if status == 404:
        return NotFoundError(message)
    return InputError(message) if status < 500 and status != 429 else UnavailableError(message)
