"""The transformers engine against `generate`, and what requests beside each other may not do to one another."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmray.errors import ConfigError, InputError, UnavailableError
from llmray.serve.engine import EngineRequest, RequestRefusedError, Sampling, TokenEvent
from llmray.serve.hf_engine import HfEngine
from llmray.serve.quantize import load

CHAT = ({"role": "user", "content": "What does os.path.join do?"},)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[HfEngine]:
    engine = HfEngine.open(tiny_model, "none", device="cpu")
    yield engine
    engine.close()


def listen(engine: HfEngine, *requests: EngineRequest) -> list[list[TokenEvent]]:
    """Events of requests sent together."""

    async def one(request: EngineRequest) -> list[TokenEvent]:
        return [event async for event in engine.submit(request)]

    async def all_of_them() -> list[list[TokenEvent]]:
        return list(await asyncio.gather(*map(one, requests)))

    return asyncio.run(all_of_them())


def ask(engine: HfEngine, *requests: EngineRequest) -> list[tuple[str, str | None, int]]:
    """Answers to requests sent together: text, finish reason, tokens."""
    return [
        ("".join(event.text for event in events), events[-1].finish_reason, sum(e.num_tokens for e in events))
        for events in listen(engine, *requests)
    ]


def chat(request_id: str = "a", **sampling: object) -> EngineRequest:
    return EngineRequest(id=request_id, messages=CHAT, sampling=Sampling(**{"max_tokens": 24, **sampling}))


@pytest.mark.parametrize("quantization", ["none", "bf16", "nf4", "int8"])
def test_greedy_equals_generate(tiny_model: Path, quantization: str) -> None:
    engine = HfEngine.open(tiny_model, quantization, device="cpu")
    try:
        [(text, _, tokens)] = ask(engine, chat(temperature=0.0, max_tokens=40))
    finally:
        engine.close()
    loaded = load(tiny_model, quantization, device="cpu")
    prompt = loaded.tokenizer("user: What does os.path.join do?\nassistant: ", return_tensors="pt")
    with torch.inference_mode():
        expected = loaded.model.generate(**prompt, max_new_tokens=40, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
    assert tokens == len(expected)
    assert text == loaded.tokenizer.decode(expected, skip_special_tokens=True)


def test_quantized_weights_are_smaller_and_close(tiny_model: Path) -> None:
    sizes = {name: load(tiny_model, name, device="cpu").info.weight_bytes for name in ("none", "int8", "nf4")}
    assert sizes["none"] > sizes["int8"] > sizes["nf4"]
    prompt = torch.arange(3, 60).unsqueeze(0)
    exact = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.inference_mode():
        truth = exact(prompt).logits.float().flatten()
        for name, least in (("int8", 0.95), ("nf4", 0.6)):
            logits = load(tiny_model, name, device="cpu").model(prompt).logits.float().flatten()
            assert torch.corrcoef(torch.stack([truth, logits]))[0, 1] > least


def test_requests_together_answer_as_alone(engine: HfEngine) -> None:
    requests = [
        chat("greedy", temperature=0.0),
        chat("hot", temperature=2.0, seed=1, max_tokens=30),
        chat("cold", temperature=0.3, seed=1, top_k=5),
        chat("nucleus", temperature=1.0, seed=2, top_p=0.5),
        EngineRequest(id="text", prompt="It joins", sampling=Sampling(max_tokens=9, seed=3)),
    ]
    alone = [ask(engine, request)[0] for request in requests]
    assert ask(engine, *requests) == alone
    assert len({text for text, _, _ in alone}) == len(alone)


def test_seed_repeats_and_its_absence_does_not(engine: HfEngine) -> None:
    first, again, other, free, free_again = ask(
        engine, chat(seed=7), chat(seed=7), chat(seed=8), chat(max_tokens=64), chat(max_tokens=64)
    )
    assert first == again
    assert first != other
    assert free != free_again


def test_stop_text_ends_the_answer_and_is_not_in_it(engine: HfEngine) -> None:
    [(whole, _, tokens)] = ask(engine, chat(temperature=0.0, max_tokens=60))
    stop = whole[10:14]
    [(text, reason, fewer)] = ask(engine, chat(temperature=0.0, max_tokens=60, stop=("never seen", stop)))
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"
    assert fewer <= tokens


def test_max_tokens_and_context_end_with_length(engine: HfEngine) -> None:
    [(_, reason, tokens)] = ask(engine, chat(temperature=0.0, max_tokens=5))
    assert (reason, tokens) == ("length", 5)
    [(_, reason, tokens)] = ask(engine, EngineRequest(id="b", prompt="x" * 250, sampling=Sampling(temperature=0.0)))
    assert reason == "length"
    assert 1 <= tokens < engine.info.context_tokens


def test_long_prompt_is_refused_by_name(engine: HfEngine) -> None:
    with pytest.raises(RequestRefusedError, match="context holds 256") as refusal:
        ask(engine, EngineRequest(id="b", prompt="日" * 300))
    assert refusal.value.param == "prompt"
    assert refusal.value.code == "context_length_exceeded"


def test_a_closed_engine_and_bad_arguments_say_so(tiny_model: Path, tmp_path: Path) -> None:
    engine = HfEngine.open(tiny_model, "none", device="cpu")
    engine.close()
    with pytest.raises(UnavailableError):
        ask(engine, chat())
    with pytest.raises(ConfigError, match="nf4, int8, bf16, none"):
        load(tiny_model, "int3")
    with pytest.raises(InputError):
        load(tmp_path, "none")
