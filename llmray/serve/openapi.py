"""The OpenAPI document's schemas: bodies from the models that read them, responses and errors as OpenAI has them.

Bodies are read by `intake` rather than by FastAPI, so the document is told about them here. Rejected: response models
that build each response (a pydantic object for each chunk of a stream), and listing every status code of every route
(`4XX` and `5XX` have one shape here, which is the promise).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]

_TEXT, _NUMBER, _WHOLE, _OBJECT = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "object"}
_EVENT = {
    "type": "object",
    "properties": {"data": {**_TEXT, "description": "A chunk or an error in JSON; `[DONE]` in the last event"}},
    "required": ["data"],
}
OUTPUT_ID_HEADER = "x-llmray-output-id"


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The request body of a route, for its `openapi_extra`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def responses(schema: Schema, *, stream: bool = False, output_id: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of a route, for its `responses`.

    Args:
        stream: whether it also answers in server-sent events.
        output_id: whether the header names the output.
    """
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if stream:
        content["text/event-stream"] = {"schema": _EVENT}
    success: dict[str, Any] = {"description": "Done", "content": content}
    if output_id:
        success["headers"] = {OUTPUT_ID_HEADER: {"schema": _TEXT, "description": "Id that feedback attaches to"}}
    failed = {"content": {"application/json": {"schema": ERROR}}}
    return {
        200: success,
        "4XX": {"description": "Refused: `param` names the field", **failed},
        "5XX": {"description": "Not now, or never: `code` says which", **failed},
    }


def listing(item: Schema) -> Schema:
    """A list of objects, as OpenAI's API gives it."""
    return record(object=_const("list"), data={"type": "array", "items": item})


def record(**properties: Schema) -> Schema:
    """An object that has these properties, and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _const(value: str) -> Schema:
    return {"const": value}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


ERROR = record(error=record(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT)))
_USAGE = record(
    prompt_tokens=_WHOLE,
    completion_tokens=_WHOLE,
    total_tokens=_WHOLE,
    prompt_tokens_details=record(cached_tokens=_WHOLE),
)
_PROVENANCE = record(
    output_id=_TEXT,
    output_ids={"type": "array", "items": _TEXT},
    prompt=_or_null(_TEXT),
    prompt_digest=_or_null(_TEXT),
    model_digest=_TEXT,
    variant=_TEXT,
)
_FINISH = {"enum": ["stop", "length", "tool_calls"]}
_CALL = record(id=_TEXT, type=_const("function"), function=record(name=_TEXT, arguments=_TEXT))
_MESSAGE = {
    **record(role=_const("assistant"), content=_or_null(_TEXT)),
    "description": "With `tool_calls` where the model called tools",
}


def _answers(kind: str, choice: Schema) -> Schema:
    return record(
        id=_TEXT,
        object=_const(kind),
        created=_WHOLE,
        model=_TEXT,
        choices={"type": "array", "minItems": 1, "items": choice},
        usage=_USAGE,
        llmray=_PROVENANCE,
    )


CHAT = _answers(
    "chat.completion",
    record(
        index=_WHOLE,
        message={**_MESSAGE, "properties": {**_MESSAGE["properties"], "tool_calls": {"type": "array", "items": _CALL}}},
        logprobs=_or_null(_OBJECT),
        finish_reason=_FINISH,
    ),
)
COMPLETION = _answers(
    "text_completion", record(index=_WHOLE, text=_TEXT, logprobs=_or_null(_OBJECT), finish_reason=_FINISH)
)
EMBEDDINGS = record(
    object=_const("list"),
    model=_TEXT,
    data={
        "type": "array",
        "items": record(
            object=_const("embedding"),
            index=_WHOLE,
            embedding={"anyOf": [{"type": "array", "items": _NUMBER}, _TEXT]},
        ),
    },
    usage=record(prompt_tokens=_WHOLE, total_tokens=_WHOLE),
)
MODEL = record(id=_TEXT, object=_const("model"), created=_WHOLE, owned_by=_TEXT)
FEEDBACK = record(object=_const("feedback"), id=_TEXT, output_id=_TEXT, kind=_TEXT)
PROMPT = record(
    object=_const("prompt"),
    name=_TEXT,
    version=_WHOLE,
    digest=_TEXT,
    messages={"type": "array", "items": _OBJECT},
    variables={"type": "array", "items": _TEXT},
    settings=_OBJECT,
)
STATUS = record(status=_TEXT)


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references, and with null for what may be left out: FastAPI adds no components of ours."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rsplit("/", 1)[1]], definitions)
    node = {name: _inlined(value, definitions) for name, value in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("additionalProperties") is False:
        needed = node.get("required", ())
        node["properties"] = {
            name: value if name in needed or {"type": "null"} in value.get("anyOf", ()) else _or_null(value)
            for name, value in node["properties"].items()
        }
    return node
