"""The pure parts of serving: the split of traffic, text pieces, prompts, queues, the canary policy."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmray.errors import InputError, UnavailableError
from llmray.serve.detokenize import Detokenizer, StopText
from llmray.serve.outbox import Outbox
from llmray.serve.variants import GatewayConfig, Variant, choose


def split(*weights: float) -> list[Variant]:
    return [Variant(name=f"v{n}", app=f"a{n}", digest=f"{n}" * 64, weight=weight) for n, weight in enumerate(weights)]


def test_split_follows_the_weights() -> None:
    counts = Counter(choose(split(75, 25), f"user{n}").name for n in range(4000))
    # four standard deviations of a binomial with n = 4000, p = 1/4
    assert abs(counts["v1"] - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_growing_canary_keeps_its_people(key: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    if choose(split(100 - less, less), key).name == "v1":
        assert choose(split(100 - more, more), key).name == "v1"


@given(st.text())
def test_weight_zero_gets_nobody(key: str) -> None:
    assert choose(split(100, 0), key).name == "v0"
    assert choose(split(0, 100), key).name == "v1"


def test_config_without_weight_or_with_two_of_a_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="weight"):
        GatewayConfig(model="m", variants=split(0, 0))
    with pytest.raises(ValidationError, match="name of its own"):
        GatewayConfig(model="m", variants=[*split(1), *split(1)])


@given(st.text(), st.data())
def test_pieces_add_up_to_the_text_and_hold_whole_characters(text: str, data: st.DataObject) -> None:
    raw = text.encode() + data.draw(st.binary(max_size=3))
    shown: list[str] = []
    stream = Detokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    for byte in raw:
        shown.append(stream.push(byte))
        assert raw.decode(errors="replace").startswith("".join(shown)) or "�" in raw.decode(errors="replace")
    shown.append(stream.flush())
    assert "".join(shown) == raw.decode(errors="replace")


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stop_text_never_shows(text: str, stops: Sequence[str], data: st.DataObject) -> None:
    stop, shown, rest = StopText(stops), "", text
    while rest and not stop.found:
        size = data.draw(st.integers(1, len(rest)))
        shown += stop.push(rest[:size])
        rest = rest[size:]
    shown += stop.flush()
    assert not any(each in shown for each in stops)
    assert text.startswith(shown)
    if not any(each in text for each in stops):
        assert shown == text


def test_outbox_batches_keeps_order_and_empties_on_close() -> None:
    async def scenario() -> None:
        sent: list[list[int]] = []

        async def send(batch: Sequence[int]) -> None:
            sent.append(list(batch))

        box: Outbox[int] = Outbox("test", send, batch=10, interval_s=0.001)
        box.start()
        for number in range(25):
            box.put(number)
        await box.close()
        assert [number for batch in sent for number in batch] == list(range(25))
        assert max(map(len, sent)) <= 10
        assert box.dropped == 0

    asyncio.run(scenario())


def test_outbox_counts_what_it_drops_and_passes_by_what_is_refused() -> None:
    async def scenario() -> None:
        kept: list[int] = []
        up, sends = [False], [0]

        async def send(batch: Sequence[int]) -> None:
            sends[0] += 1
            if not up[0]:
                raise UnavailableError("away")
            if 3 in batch:
                raise InputError("3 cannot be kept")
            kept.extend(batch)

        box: Outbox[int] = Outbox("test", send, capacity=8)
        for number in range(10):
            box.put(number)
        assert box.dropped == 2
        await box.flush()
        assert len(box) == 8
        up[0] = True
        await box.close()
        assert sorted(kept) == [0, 1, 2, 4, 5, 6, 7]
        assert box.dropped == 3
        up[0] = False
        tap: Outbox[int] = Outbox("tap", send, keep_trying=False)
        tap.put(1)
        await tap.flush()
        assert (len(tap), tap.dropped) == (0, 1)
        for number in range(100):
            tap.put(number)
        tried = sends[0]
        await tap.flush()
        assert (len(tap), tap.dropped, sends[0] - tried) == (0, 101, 1)  # one that hangs is not waited for item by item

    asyncio.run(scenario())


def test_outbox_sends_less_at_a_time_where_a_batch_is_too_much() -> None:
    async def scenario() -> None:
        sent: list[list[str]] = []
        most = [10**6]

        async def send(batch: Sequence[str]) -> None:
            if sum(map(len, batch)) > most[0]:
                raise UnavailableError("not within 5 s")
            sent.append(list(batch))

        box: Outbox[str] = Outbox("test", send, size=len, batch_bytes=10)
        for item in ("1234", "123456", "12345678901", "1", "2"):
            box.put(item)
        await box.flush()
        assert sent == [["1234", "123456"], ["12345678901"], ["1", "2"]]
        sent.clear()
        most[0] = 2
        for number in range(8):
            box.put(str(number))
        for _ in range(8):
            await box.flush()
        assert [one for batch in sent for one in batch] == list("01234567")

    asyncio.run(scenario())


def test_those_who_flush_together_wait_for_one_sending() -> None:
    async def scenario() -> None:
        begun, let = 0, asyncio.Event()

        async def send(batch: Sequence[int]) -> None:
            nonlocal begun
            begun += 1
            await let.wait()
            raise UnavailableError("away")

        box: Outbox[int] = Outbox("test", send)
        box.put(1)
        waiting = [asyncio.ensure_future(box.flush()) for _ in range(50)]
        await asyncio.sleep(0)
        waiting += [asyncio.ensure_future(box.flush()) for _ in range(50)]
        await asyncio.sleep(0)
        let.set()
        await asyncio.gather(*waiting)
        assert begun <= 2

    asyncio.run(scenario())


def test_outbox_stops_in_time_where_nobody_takes_anything() -> None:
    async def scenario() -> None:
        async def send(batch: Sequence[int]) -> None:
            await asyncio.Event().wait()

        box: Outbox[int] = Outbox("test", send, batch=1, timeout_s=3600.0, keep_trying=False)
        box.start()
        for number in range(100):
            box.put(number)
        await box.close(patience_s=0.01)
        assert (len(box), box.dropped) == (0, 100)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_outbox_sends_in_no_requests_context() -> None:
    request: ContextVar[str | None] = ContextVar("request", default=None)

    async def scenario() -> None:
        async def send(batch: Sequence[int]) -> None:
            assert request.get() is None

        box: Outbox[int] = Outbox("test", send)
        request.set("one whose end cancels what it asked for")
        box.put(1)
        await box.flush()
        assert (len(box), box.dropped) == (0, 0)

    asyncio.run(scenario())


def test_outbox_is_bounded_by_bytes_and_waits_for_the_registry_at_the_stop() -> None:
    async def scenario() -> None:
        kept: list[str] = []
        away = [3]

        async def send(batch: Sequence[str]) -> None:
            if away[0] > 0:
                away[0] -= 1
                raise UnavailableError("away")
            kept.extend(batch)

        box: Outbox[str] = Outbox("test", send, size=len, capacity_bytes=10, interval_s=0.001)
        for item in ("12345", "1234567", "123"):
            box.put(item)
        assert (len(box), box.dropped) == (2, 1)
        await box.close()
        assert kept == ["12345", "123"]
        box.put("1234567890")
        away[0] = 10**6
        await box.close(patience_s=0.01)
        assert (len(box), box.dropped) == (0, 2)

    asyncio.run(scenario())
