"""A model that follows instructions, as far as tests need one: everything around it is the real thing.

It can do all that an engine can: it calls the tool that a question asks for, writes JSON that fits a schema, and adds
its seed when it is asked to roll dice. A tiny random model cannot follow instructions, so the suites that other people
wrote for chat models need this one. One token a word; a token's log-probability is minus its length.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from llmray.serve.detokenize import StopText
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import FEATURES, EngineRequest, TokenEvent, TokenLogprob, check, last_user_text

_WORD = re.compile(r"\s*\S+|\s+$")


class ScriptedEngine(EchoEngine):
    def __init__(self, *, without: frozenset[str] = frozenset()) -> None:
        """Do everything but `without`."""
        super().__init__()
        self.info = replace(self.info, engine="scripted", can=frozenset(FEATURES) - without, adapters=("poet",))
        self.asked: list[EngineRequest] = []

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        check(request, self.info)
        self.asked.append(request)
        prompt, words = _tokens(_prompt(request)), _tokens(answer(request))
        limit = request.sampling.max_tokens
        reason = "stop" if limit is None or limit >= len(words) else "length"
        stop = StopText(request.sampling.stop)
        self.active += 1
        try:
            if request.echo:
                seen = tuple(_logprob(request, word, place, in_prompt=True) for place, word in enumerate(prompt))
                yield TokenEvent("".join(prompt), 0, len(prompt), reason if limit == 0 else None, seen)
            if request.echo and limit == 0:
                return
            for word in words[:limit]:
                await asyncio.sleep(0)
                text = stop.push(word)
                seen = (_logprob(request, word, 1),) if request.sampling.logprobs is not None else ()
                yield TokenEvent(text, 1, len(prompt), "stop" if stop.found else None, seen, cached_tokens=1)
                if stop.found:
                    return
            yield TokenEvent(stop.flush(), 0, len(prompt), reason)
        finally:
            self.active -= 1


def answer(request: EngineRequest) -> str:
    """What the model says."""
    text = _prompt(request)
    if request.json_schema is not None:
        schema = json.loads(request.json_schema)
        return json.dumps(fitting(schema, schema, text), ensure_ascii=False)
    last = request.messages[-1] if request.messages else {"role": "user"}
    if last["role"] == "tool":
        return f"The answer is {last['content']}"
    for tool in request.tools:
        function = tool["function"]
        if any(word in text.lower() for word in ("tool", *function["name"].lower().split("_"))):
            parameters = function.get("parameters", {"type": "object"})
            call = {"name": function["name"], "arguments": fitting(parameters, parameters, text)}
            return f"I look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"
    if "dice" in text:
        return f"rolled {request.sampling.seed}"
    return f"{'Rhymes' if request.adapter else 'Words'} on: {text}"


def fitting(schema: Any, root: Mapping[str, Any], text: str) -> Any:
    """A value that a JSON schema allows, with the numbers and quotations of a text."""
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            found = found[int(part) if isinstance(found, list) else part]
        return fitting(found, root, text)
    if "const" in schema or "enum" in schema:
        return schema.get("const", next(iter(schema.get("enum", ())), None))
    if options := schema.get("anyOf") or schema.get("allOf"):
        return fitting(options[0], root, text)
    match schema.get("type", "object"):
        case "object" if "properties" not in schema:
            return dict.fromkeys(re.findall(r"'(\w+)'", text), "cats")
        case "object":
            return {name: fitting(inner, root, text) for name, inner in schema.get("properties", {}).items()}
        case "string":
            return (re.findall(r"'([^']+)'", text) or ["cats"])[0]
        case "integer" | "number":
            return int((re.findall(r"\d+", text) or ["0"])[0])
        case "array":
            return [fitting(schema.get("items", {}), root, text)]
        case kind:
            return {"boolean": True, "null": None}[kind]


def _prompt(request: EngineRequest) -> str:
    if request.messages is not None:
        return last_user_text(request.messages)
    if isinstance(request.prompt, str):
        return request.prompt
    return " ".join(f"t{token}" for token in request.prompt or ())


def _tokens(text: str) -> list[str]:
    return _WORD.findall(text)


def _logprob(request: EngineRequest, word: str, place: int, *, in_prompt: bool = False) -> TokenLogprob:
    token, count = word.encode(), request.sampling.logprobs or 0
    logprob = -float(len(token)) if place else None
    top = tuple((token + b"!" * rank, -float(len(token) + rank)) for rank in range(count))
    return TokenLogprob(token, logprob, top, in_prompt)
