"""The cost of an answer: shares of a model's time that add up."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_ports import Bench, finish

from llmray.serve.cost import SharedTime
from llmray.serve.protocol import ChatRequest
from llmray.serve.variants import GatewayConfig, Variant


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 100)), min_size=1, max_size=20),
)
def test_shares_add_up_to_the_time_in_which_any_ran(spans: list[tuple[float, float]]) -> None:
    moments = sorted(
        [(begin, True, number) for number, (begin, _) in enumerate(spans)]
        + [(begin + length, False, number) for number, (begin, length) in enumerate(spans)]
    )
    now = [0.0]
    shared = SharedTime(lambda: now[0])
    begun: dict[int, float] = {}
    shares: dict[int, float] = {}
    busy, last = 0.0, 0.0
    for moment, starts, number in moments:
        busy += (moment - last) * (len(begun) > len(shares))
        now[0] = last = moment
        if starts:
            begun[number] = shared.begin()
        else:
            shares[number] = shared.end(begun[number])
    assert sum(shares.values()) == pytest.approx(busy)
    for number, (_, length) in enumerate(spans):
        assert 0 < shares[number] <= length * (1 + 1e-9)


def test_two_answers_at_once_cost_what_one_machine_costs() -> None:
    async def scenario() -> None:
        bench = Bench()
        now = [1000.0]
        bench.gateway.accounts.now = lambda: now[0]
        variant = Variant(name="stable", app="stable", digest="a" * 64, price_s=0.5)
        bench.gateway.configure(GatewayConfig(model="docs", variants=[variant]))
        body = ChatRequest.model_validate({"model": "docs", "messages": [{"role": "user", "content": "one"}]})
        answers = [await bench.gateway.open(body) for _ in range(2)]
        now[0] += 4.0
        await finish(answers[0])
        now[0] += 1.0
        await finish(answers[1])
        await bench.gateway.close()
        costs = [bench.registry.outputs[answer.id].cost for answer in answers]
        assert costs == [pytest.approx(0.5 * 2.0), pytest.approx(0.5 * 3.0)]

    asyncio.run(scenario())
