"""`GET /v1/outputs/{id}`: where an answer came from, by the id that its response carried.

Texts are left out where the log does not keep them. An id is 32 random digits: who has it was given it. What was asked
with an API key is shown to its project only.
"""

from dataclasses import asdict, fields

import orjson
from fastapi import FastAPI
from fastapi.responses import Response

from llmray.errors import NotFoundError, UnavailableError
from llmray.serve import openapi
from llmray.serve.access import caller
from llmray.serve.core import Gateway
from llmray.serve.ports import OutputRecord
from llmray.serve.protocol import ApiError

_OUTPUT = openapi.record(object={"const": "output"}, **{field.name: {} for field in fields(OutputRecord)})


def add_output_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add `/v1/outputs/{id}`."""

    @app.get("/v1/outputs/{output_id}", responses=openapi.responses(_OUTPUT))
    async def output(output_id: str) -> Response:
        if gateway.ports.outputs is None:
            raise ApiError(501, "this gateway keeps no outputs: bind it to a registry", code="no_outputs")
        await gateway.accounts.flush()
        try:
            found = await gateway.ports.outputs.output(output_id)
        except NotFoundError as error:
            raise ApiError(404, str(error), code="output_not_found") from error
        except UnavailableError as error:
            raise ApiError(503, str(error), code="registry_unavailable", retry_after_s=1.0) from error
        who = caller.get()
        if who is not None and found.project is not None and found.project != who.project:
            raise ApiError(404, f"there is no output {output_id}", code="output_not_found")
        return Response(orjson.dumps({"object": "output", **asdict(found)}), media_type="application/json")
