"""The parts that requests are made of: messages, tools, formats, documents; strict, so that nothing is ignored.

Null is the same as absent, as in OpenAI's API. Content may be a list of text parts; images and sound are refused.
"""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from llmray.serve.engine import ChatMessage, RequestRefusedError

MAX_BODY_BYTES = 4 << 20

Text = Annotated[str, StringConstraints(max_length=MAX_BODY_BYTES)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Strict(BaseModel):
    """A part of a request: no unknown field, no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return without_nulls(data)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class FunctionCall(Strict):
    name: FunctionName
    arguments: Text
    """A JSON object, as text."""


class ToolCall(Strict):
    """A call that the model made earlier in the conversation."""

    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall

    def plain(self) -> dict[str, Any]:
        """As chat templates know it: arguments as an object, which they print as JSON themselves.

        Raises:
            RequestRefusedError: the arguments are no JSON object.
        """
        try:
            arguments = orjson.loads(self.function.arguments or "{}")
        except orjson.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            raise RequestRefusedError(
                f"the arguments of the tool call {self.id} are no JSON object", "messages", "invalid_value"
            )
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    """Only an assistant that calls tools may say nothing."""
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = []
    tool_call_id: Name | None = None
    """Which call a tool's message answers."""

    @field_validator("content", mode="before", json_schema_input_type=Text | list[TextPart] | None)
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        if any(
            not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text" for part in content
        ):
            raise ValueError("only parts of the form {'type': 'text', 'text': …} can be read")
        if not all(isinstance(part["text"], str) for part in content):
            raise ValueError("the text of a part must be a string")
        return "".join(part["text"] for part in content)

    @model_validator(mode="after")
    def _fits_role(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls stand in an assistant's message only")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's message, and no other, says in tool_call_id what it answers")
        return self

    def plain(self) -> ChatMessage:
        """As chat templates know it: a developer's message is a system one.

        Raises:
            RequestRefusedError: the arguments of a tool call are no JSON object.
        """
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class Function(Strict):
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments; None for none."""
    strict: bool | None = None
    """Calls that are asked for by `tool_choice` always keep to the schema; others cannot, and true is refused there."""


class Tool(Strict):
    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class NamedFunction(Strict):
    name: FunctionName


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    model_config = ConfigDict(serialize_by_alias=True)

    name: FunctionName
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None
    """Answers keep to the schema whether this is true or not."""


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_asked(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema, and no other type, comes with a json_schema")
        return self

    def schema_wanted(self) -> dict[str, Any] | None:
        """What the answer must satisfy; None for free text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Document(BaseModel):
    """Something that was retrieved for the request; what else the client says of it is kept too."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    digest: Annotated[str, StringConstraints(max_length=256)] | None = None
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None


def without_nulls(data: Any) -> Any:
    """An object's fields that are there."""
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data
