"""What of an answer's texts the log keeps."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from memory_ports import Bench, finish

from llmray.outputs import Output
from llmray.serve.protocol import ChatRequest
from llmray.serve.text_log import kept, output_size
from llmray.serve.variants import TextLog

RECORD = Output(
    id="out1",
    at=datetime(2026, 1, 31, tzinfo=UTC),
    prompt_digest="d" * 64,
    prompt_reference="ask@production",
    variables={"who": "ada@lovelace.org"},
    messages=[
        {"role": "user", "content": "Write to ada@lovelace.org or call +44 20 7946 0958."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"arguments": '{"to": "ada@lovelace.org"}'}}],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": [{"type": "text", "text": "4111 1111 1111 1111"}]},
    ],
    completion="Done: ada@lovelace.org was told.",
    finish_reason="stop",
    model_digest="a" * 64,
    variant="stable",
    quantization="nf4",
    engine="echo",
    sampling={"temperature": 0.0, "metadata": {"sender": "bob@example.net"}},
    prompt_tokens=9,
    completion_tokens=4,
    ttft_s=0.1,
    latency_s=0.2,
)


def test_masking_leaves_no_address_and_everything_else() -> None:
    masked = kept(RECORD, TextLog(redact=True))
    assert masked.completion == "Done: <EMAIL> was told."
    assert masked.messages[0] == {"role": "user", "content": "Write to <EMAIL> or call <PHONE>."}
    assert masked.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"to": "<EMAIL>"}'
    assert masked.messages[2] == {
        "role": "tool",
        "tool_call_id": "call-1",
        "content": [{"type": "text", "text": "<CARD>"}],
    }
    assert (masked.variables, masked.sampling["metadata"]) == ({"who": "<EMAIL>"}, {"sender": "<EMAIL>"})
    assert masked.text_kept
    assert kept(masked, TextLog(redact=True)) == masked


@given(identity=st.text(min_size=1), share=st.floats(0, 100), more=st.floats(0, 100))
def test_an_output_that_keeps_its_texts_keeps_them_at_any_larger_share(
    identity: str, share: float, more: float
) -> None:
    record = replace(RECORD, id=identity)
    low, high = sorted((share, more))
    if kept(record, TextLog(share=low)).text_kept:
        assert kept(record, TextLog(share=high)) is record
    beside = replace(record, id="shadow", shadow_of=identity)
    assert kept(beside, TextLog(share=low)).text_kept == kept(record, TextLog(share=low)).text_kept
    none = kept(record, TextLog(share=0))
    assert (none.messages, none.variables, none.completion, none.text_kept) == ([], {}, "", False)
    assert replace(none, messages=RECORD.messages, variables=RECORD.variables, completion=RECORD.completion) == replace(
        record, text_kept=False
    )


def test_the_size_of_an_output_knows_all_that_a_client_can_fill() -> None:
    big = "x" * 10_000
    for change in (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": big}]}]},
        {"variables": {"a": big}},
        {"sampling": {"tools": [{"function": {"description": big}}]}},
        {"sampling": {"metadata": {big: "1"}}},
        {"documents": [{"id": "1", "text": big}]},
        {"completion": big},
    ):
        assert output_size(replace(RECORD, **change)) > 10_000  # type: ignore[arg-type]


def test_a_text_that_cannot_be_masked_is_not_kept() -> None:
    nested: list[object] = []
    for _ in range(10_000):
        nested = [nested]
    record = replace(RECORD, messages=[{"role": "user", "content": nested}])
    assert not kept(record, TextLog(redact=True)).text_kept


def test_the_gateway_follows_its_policy_and_the_monitor_still_sees_the_text() -> None:
    async def scenario() -> None:
        bench = Bench()
        config = bench.gateway.config
        assert config is not None
        bench.gateway.configure(config.model_copy(update={"text_log": TextLog(share=0)}))
        body = {"model": "docs", "messages": [{"role": "user", "content": "one two"}]}
        answer = await bench.gateway.open(ChatRequest.model_validate(body))
        await finish(answer)
        await bench.gateway.close()
        record = bench.registry.outputs[answer.id]
        assert (record.completion, record.text_kept, record.completion_tokens) == ("", False, 2)
        assert bench.monitor.seen[0]["completion"] == "one two"

    asyncio.run(scenario())
