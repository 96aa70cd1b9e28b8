"""Prompts over HTTP: list, show and make versions; move, split, roll back, protect and delete labels.

What is written here is written to the registry's event log, and every gateway serves it within two seconds. Names in
the path that nothing goes by are 404; a body that says nothing possible is 400; a protected label that is moved without
a gate's evidence is 409. A caller's word is no evidence: it names a verdict that the registry keeps, and verdicts are recorded
and protection is taken off on the registry's side alone. Rejected: PUT of a label (a move is an event with a reason, not a
state to overwrite).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints, model_validator

from llmray.errors import GateRefusedError, InputError, NotFoundError, UnavailableError
from llmray.reference import check_name
from llmray.serve import openapi
from llmray.serve.access import caller
from llmray.serve.chat_fields import Strict
from llmray.serve.core import Gateway
from llmray.serve.engine import RequestRefusedError
from llmray.serve.intake import Limits, read_body
from llmray.serve.openapi import body_of, responses
from llmray.serve.ports import LabelChange, PromptDraft, PromptLabel, PromptStore, PromptVersion
from llmray.serve.protocol import ApiError, registry_away

_Line = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Version = Annotated[str, StringConstraints(min_length=1, max_length=210)]
_PROMPT = {**openapi.PROMPT, "required": [*openapi.PROMPT["required"], "message", "author", "created_at", "labels"]}
_LABEL = openapi.record(
    object={"const": "prompt.label"}, name={"type": "string"}, label={"type": "string"}, versions={"type": "object"}
)


class NewPrompt(Strict):
    name: str
    messages: Annotated[list[dict[Literal["role", "content"], str]], Field(min_length=1, max_length=256)]
    """`{variable}` marks where a value goes, `{{` and `}}` are braces."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Sampling defaults: temperature, top_p, top_k, max_tokens, stop, seed, penalties."""
    message: Annotated[str, StringConstraints(max_length=10_000)] = ""
    """Why this version is made."""
    author: _Line = "user"


class _Said(Strict):
    actor: _Line = "user"
    reason: Annotated[str, StringConstraints(max_length=10_000)] = ""
    """Kept with the event."""


class LabelMove(_Said):
    version: Annotated[int, Field(ge=1, strict=True)] | _Version | None = None
    """Number of the version, or a reference to it: `ask-docs@staging`."""
    versions: Annotated[dict[_Version, _Weight], Field(min_length=1, max_length=64)] | None = None
    """Or several, with their shares of the traffic, relative to one another."""
    evidence: _Line | None = None
    """Id of a gate's verdict that the registry keeps; a protected label moves only if it says to promote this version."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "LabelMove":
        if (self.version is None) == (self.versions is None):
            raise RequestRefusedError("send version, or versions with their weights", "version", "invalid_value")
        return self


class LabelRollback(_Said):
    pass


class LabelProtection(_Said):
    pass


def add_prompt_routes(app: FastAPI, gateway: Gateway, limits: Limits) -> None:
    """Add `/v1/prompts` and what is below it."""
    _add_versions(app, gateway, limits)
    _add_labels(app, gateway, limits)


def _add_versions(app: FastAPI, gateway: Gateway, limits: Limits) -> None:
    @app.get("/v1/prompts", responses=responses(openapi.listing(_PROMPT)))
    async def prompts() -> Response:
        store = _store(gateway)
        with _errors():
            versions, labels = await store.prompt_versions(None), await store.prompt_labels(None)
        data = [_shown(version, labels) for version in versions]
        return _json({"object": "list", "data": data, "labels": list(labels)})

    @app.get("/v1/prompts/{reference}", responses=responses(_PROMPT))
    async def prompt(reference: str) -> Response:
        store = _store(gateway)
        with _errors(wrong=404):
            [version] = await store.prompt_versions(reference)
            return _json(_shown(version, await store.prompt_labels(version.name)))

    @app.post("/v1/prompts", openapi_extra=body_of(NewPrompt), responses=responses(_PROMPT))
    async def create(request: Request) -> Response:
        store, body = _store(gateway), await read_body(request, NewPrompt, limits)
        with _errors():
            version = await store.put_prompt(
                PromptDraft(
                    name=body.name,
                    messages=[{str(part): text for part, text in message.items()} for message in body.messages],
                    settings=body.settings,
                    message=body.message,
                    author=_who(body.author),
                )
            )
            return _json(_shown(version, await store.prompt_labels(version.name)))


def _add_labels(app: FastAPI, gateway: Gateway, limits: Limits) -> None:
    path = "/v1/prompts/{name}/labels/{label}"

    @app.post(path, openapi_extra=body_of(LabelMove), responses=responses(_LABEL))
    async def move(name: str, label: str, request: Request) -> Response:
        body = await read_body(request, LabelMove, limits)
        versions = body.versions or {str(body.version): 1.0}
        change = LabelChange(
            type="move",
            name=name,
            label=label,
            versions=versions,
            actor=_who(body.actor),
            reason=body.reason,
            evidence=body.evidence,
        )
        return await _changed(gateway, change)

    @app.delete(path, responses=responses(_LABEL))
    async def delete(name: str, label: str, actor: str = "user", reason: str = "") -> Response:
        change = LabelChange(type="delete", name=name, label=label, actor=_who(actor), reason=reason)
        return await _changed(gateway, change)

    @app.post(f"{path}/rollback", openapi_extra=body_of(LabelRollback), responses=responses(_LABEL))
    async def rollback(name: str, label: str, request: Request) -> Response:
        body = await read_body(request, LabelRollback, limits)
        change = LabelChange(type="rollback", name=name, label=label, actor=_who(body.actor), reason=body.reason)
        return await _changed(gateway, change)

    @app.post(f"{path}/protection", openapi_extra=body_of(LabelProtection), responses=responses(_LABEL))
    async def protect(name: str, label: str, request: Request) -> Response:
        body = await read_body(request, LabelProtection, limits)
        change = LabelChange(type="protect", name=name, label=label, actor=_who(body.actor), reason=body.reason)
        return await _changed(gateway, change)


async def _changed(gateway: Gateway, change: LabelChange) -> Response:
    store = _store(gateway)
    with _errors(wrong=404):
        check_name(change.name)
    with _errors():
        now = await store.change_label(change)
    nothing = {"name": change.name, "label": change.label, "versions": {}}
    return _json({"object": "prompt.label", **(nothing if now is None else asdict(now))})


@contextmanager
def _errors(wrong: int = 400) -> Iterator[None]:
    """The registry's errors as HTTP knows them; `wrong` is the status of what is wrong rather than missing."""
    try:
        yield
    except NotFoundError as error:
        raise ApiError(404, str(error), code="prompt_not_found") from error
    except InputError as error:
        code = "prompt_not_found" if wrong == 404 else "invalid_value"
        raise ApiError(wrong, str(error), code=code) from error
    except GateRefusedError as error:
        raise ApiError(409, str(error), param="evidence", code="gate_refused") from error
    except UnavailableError as error:
        raise registry_away() from error


def _who(said: str) -> str:
    """Who does it, by their own word, and by which key where there are keys."""
    who = caller.get()
    return said if who is None or who.key_id is None else f"{said} by key {who.key_id}"


def _store(gateway: Gateway) -> PromptStore:
    if gateway.ports.store is None:
        raise ApiError(501, "this gateway has no prompts: bind it to a registry", code="no_prompts")
    return gateway.ports.store


def _shown(version: PromptVersion, labels: Sequence[PromptLabel]) -> dict[str, Any]:
    there = [one.label for one in labels if one.name == version.name and str(version.version) in one.versions]
    names = ("name", "version", "digest", "messages", "variables", "settings", "message", "author", "created_at")
    return {"object": "prompt", **{name: getattr(version, name) for name in names}, "labels": there}


def _json(value: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
