"""`GET /v1/outputs/{id}`: where an answer came from, by the id that its response carried.

Texts are left out where the log does not keep them. An id is 32 random digits: who has it was given it. What was asked
with an API key is shown to its project only.
"""

from dataclasses import asdict, fields

import orjson
from fastapi import FastAPI
from fastapi.responses import Response

from llmray.outputs import Output
from llmray.serve import openapi
from llmray.serve.core import Gateway

_OUTPUT = openapi.record(object={"const": "output"}, **{field.name: {} for field in fields(Output)})


def add_output_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add `/v1/outputs/{id}`."""

    @app.get("/v1/outputs/{output_id}", responses=openapi.responses(_OUTPUT))
    async def output(output_id: str) -> Response:
        found = await gateway.output(output_id)
        return Response(orjson.dumps({"object": "output", **asdict(found)}), media_type="application/json")
