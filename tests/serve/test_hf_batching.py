"""The transformers engine under a mixed batch: equal to `generate`, bounded memory, nothing left of those who leave."""

import asyncio
import json
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_hf_engine import CHAT, ask, chat, listen
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llmray.serve.detokenize import TokenTexts
from llmray.serve.engine import EngineRequest, OverloadedError, RequestRefusedError, Sampling
from llmray.serve.grammar import Grammars
from llmray.serve.hf_engine import HfEngine
from llmray.serve.paged_attention import Span, _decode_padded
from llmray.serve.prompt_ids import prompt_ids
from llmray.serve.quantize import load
from llmray.serve.sampling import Sampler, draw
from llmray.serve.sequence import Sequence

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers

TEXT = "It joins paths, naïvely. 日本語 😀"
NO_SPECIALS = ((0, -100.0), (1, -100.0), (2, -100.0))
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"kind": {"enum": ["file", "folder"]}, "name": {"type": "string", "maxLength": 6}},
        "required": ["kind", "name"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random LoRA adapters that change answers."""
    folders = {}
    for seed, name in enumerate(("formal", "terse")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        folders[name] = tmp_path_factory.mktemp(name)
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def engine(tiny_model: Path, adapters: dict[str, Path]) -> Iterator[HfEngine]:
    engine = HfEngine.open(tiny_model, "none", device="cpu", adapters=adapters)
    yield engine
    assert engine.num_open == 0
    assert engine.load().kv_used == 0
    engine.close()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def completion(
    prompt: str | Items[int], *, echo: bool = False, adapter: str | None = None, **sampling: Any
) -> EngineRequest:
    fields = {"max_tokens": 20, "temperature": 0.0, **sampling}
    text = prompt if isinstance(prompt, str) else tuple(prompt)
    return EngineRequest(id="x", prompt=text, sampling=Sampling(**fields), echo=echo, adapter=adapter)


def generated(model: Any, tokenizer: Any, ids: Items[int], count: int) -> str:
    with torch.inference_mode():
        answer = model.generate(torch.tensor([list(ids)]), max_new_tokens=count, do_sample=False)[0, len(ids) :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_prompts_of_all_lengths_together_equal_generate(engine: HfEngine, model: Any, tokenizer: Any) -> None:
    prompts = [[3 + (7 * n * k) % 290 for k in range(n)] for n in (1, 2, 15, 16, 17, 33, 200)]
    answers = ask(engine, *(completion(prompt) for prompt in prompts))
    assert [text for text, _, _ in answers] == [generated(model, tokenizer, prompt, 20) for prompt in prompts]


def test_long_prompts_are_read_in_pieces(tiny_model: Path, model: Any, tokenizer: Any) -> None:
    engine = HfEngine(load(tiny_model, "none", device="cpu"), step_tokens=7)
    prompts = [[3 + (5 * n * k) % 290 for k in range(n)] for n in (30, 100, 5)]
    [first, second, third] = listen(engine, *(completion(prompt, logprobs=0, echo=True) for prompt in prompts))
    texts = ["".join(event.text for event in events[1:]) for events in (first, second, third)]
    assert texts == [generated(model, tokenizer, prompt, 20) for prompt in prompts]
    assert [len(events[0].logprobs) for events in (first, second, third)] == [30, 100, 5]
    assert (engine.load().prefill_tokens_per_s or 0) > 0
    engine.close()


def test_a_full_cache_makes_requests_wait_and_all_finish(tiny_model: Path) -> None:
    engine = HfEngine.open(tiny_model, "none", device="cpu", kv_bytes=1)  # one context of 256 tokens
    requests = [chat(str(n), temperature=1.0, seed=n, max_tokens=90) for n in range(7)]
    alone = [ask(engine, request)[0] for request in requests]
    assert ask(engine, *requests) == alone
    assert engine.load().kv_used == 0
    engine.close()


def test_who_leaves_frees_everything(engine: HfEngine) -> None:
    async def leave_after(events_wanted: int) -> None:
        async with aclosing(engine.submit(chat(temperature=0.0, max_tokens=200))) as events:
            for _ in range(events_wanted):
                await anext(events)

    async def leave_while_waiting() -> None:
        task = asyncio.create_task(leave_after(100))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def everyone() -> None:
        await asyncio.gather(*(leave_after(n % 4) for n in range(30)), *(leave_while_waiting() for _ in range(30)))
        assert engine.num_open == 0
        # a step after the last one left, nothing is held but by this request
        async for _ in engine.submit(chat(max_tokens=3)):
            held = engine.load().kv_used
        assert held <= 4 / 256

    asyncio.run(everyone())
    assert ask(engine, chat(temperature=0.0, max_tokens=3))[0][2] == 3


def test_a_prompt_seen_before_is_not_read_again(engine: HfEngine) -> None:
    prompt = [3 + (11 * k) % 290 for k in range(70)]
    [first], [again], [other] = (
        listen(engine, completion(ids, max_tokens=1)) for ids in (prompt, prompt, [*prompt[:40], 9, 9])
    )
    assert (first[0].cached_tokens, again[0].cached_tokens, other[0].cached_tokens) == (0, 64, 32)
    assert first[0].text == again[0].text


def test_log_probabilities_are_the_models_own(engine: HfEngine, model: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    [events, scored] = listen(
        engine,
        completion(
            TEXT, echo=True, logprobs=3, temperature=1.3, top_k=9, seed=4, max_tokens=12, logit_bias=NO_SPECIALS
        ),
        completion(ids, echo=True, logprobs=1, max_tokens=0),
    )
    reported = [one for event in events for one in event.logprobs]
    assert b"".join(one.token for one in reported).decode(errors="replace") == "".join(event.text for event in events)
    assert [one.in_prompt for one in reported] == [True] * len(ids) + [False] * 12
    assert (reported[0].logprob, reported[0].top) == (None, ())
    assert ("".join(event.text for event in scored), scored[-1].finish_reason) == (TEXT, "length")
    assert [one.logprob for one in scored[0].logprobs] == pytest.approx([one.logprob for one in reported[: len(ids)]])
    texts = TokenTexts(tokenizer)
    by_bytes = {texts.bytes_of(token): token for token in range(3, len(tokenizer))}
    answer = [by_bytes[one.token] for one in reported]
    with torch.inference_mode():
        truth = model(torch.tensor([answer])).logits[0].log_softmax(-1)
    for place, one in enumerate(reported[1:]):
        assert one.logprob == pytest.approx(float(truth[place, answer[place + 1]]), abs=1e-4)
        best = truth[place].topk(3)
        assert [by_bytes[token] for token, _ in one.top if token in by_bytes] == [
            token for token in best.indices.tolist() if token >= 3
        ]
        assert [logprob for _, logprob in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_bias_and_penalties_change_what_is_drawn(engine: HfEngine, tokenizer: Any) -> None:
    banned = tokenizer("a")["input_ids"][0]
    forced, never, plain, varied = listen(
        engine,
        completion("x", logit_bias=((banned, 100.0),)),
        completion("x", logit_bias=((banned, 100.0), (banned, -200.0)), logprobs=0),
        completion("x", logit_bias=((banned, 100.0),), max_tokens=40),
        completion("x", logit_bias=((banned, 100.0),), frequency_penalty=2.0, presence_penalty=90.0, max_tokens=40),
    )
    assert "".join(event.text for event in forced) == "a" * 20
    assert b"a" not in [one.token for event in never for one in event.logprobs]
    assert "".join(event.text for event in plain) == "a" * 40
    assert "".join(event.text for event in varied).count("a") < 10


def test_a_random_model_keeps_to_a_schema(engine: HfEngine) -> None:
    requests = [
        EngineRequest(id=str(n), messages=CHAT, json_schema=SCHEMA, sampling=Sampling(temperature=1.5, seed=n))
        for n in range(6)
    ]
    answers = ask(engine, *requests, chat(max_tokens=5))
    for text, reason, _ in answers[:-1]:
        answer = json.loads(text)
        assert reason == "stop"
        assert set(answer) == {"kind", "name"}
        assert answer["kind"] in {"file", "folder"}
        assert len(answer["name"]) <= 6
    assert len({text for text, _, _ in answers}) > 3


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (EngineRequest(id="a", messages=CHAT, json_schema='{"type": "nonsense"}'), "response_format"),
        (EngineRequest(id="a", messages=CHAT, json_schema="{"), "response_format"),
        (EngineRequest(id="a", messages=CHAT, tools=({"type": "function"},)), "tools"),
        (EngineRequest(id="a", messages=CHAT, adapter="unknown"), "model"),
        (EngineRequest(id="a", prompt=(1, 5000)), "prompt"),
        (completion("x", logit_bias=((5000, 1.0),)), "logit_bias"),
        (completion("x", max_tokens=0), "max_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(engine: HfEngine, request_: EngineRequest, param: str) -> None:
    with pytest.raises(RequestRefusedError) as refusal:
        ask(engine, request_)
    assert refusal.value.param == param


@pytest.mark.parametrize("step", ["push", "echo", "read_prompt"])
def test_a_request_that_fails_ends_alone(engine: HfEngine, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    honest = getattr(Sequence, step)

    def fail(sequence: Sequence, *rest: Any) -> Any:
        if sequence.request.id == "bad":
            raise KeyError("token")
        return honest(sequence, *rest)

    monkeypatch.setattr(Sequence, step, fail)
    good = completion("It joins", echo=True, logprobs=1)

    async def one(request: EngineRequest) -> str:
        return "".join([event.text async for event in engine.submit(request)])

    async def together() -> list[str | BaseException]:
        return await asyncio.gather(one(good), one(replace(good, id="bad")), one(good), return_exceptions=True)

    first, failed, second = asyncio.run(together())
    assert isinstance(failed, KeyError)
    assert first == second == asyncio.run(one(good))


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    engine: HfEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_tokenizing", None)
    text = "x" * 1_000_000
    for request, param in (
        (completion(text), "prompt"),
        (replace(chat(), messages=({"role": "user", "content": text},)), "messages"),
    ):
        with pytest.raises(RequestRefusedError, match="1000000 characters") as refusal:
            ask(engine, request)
        assert (refusal.value.param, refusal.value.code) == (param, "context_length_exceeded")


def test_a_short_prompt_does_not_queue_behind_long_ones(engine: HfEngine) -> None:
    began, go = threading.Event(), threading.Event()
    engine._tokenizing.submit(lambda: (began.set(), go.wait()))
    began.wait()
    try:
        assert ask(engine, chat(max_tokens=3))[0][2] == 3
    finally:
        go.set()


def test_a_chat_that_comes_to_nothing_is_refused(tiny_model: Path) -> None:
    tokenizer = load(tiny_model, "none", device="cpu").tokenizer
    tokenizer.chat_template, tokenizer.bos_token = "{{ '' }}", None
    with pytest.raises(RequestRefusedError, match="must not be empty") as refusal:
        prompt_ids(chat(), tokenizer, vocabulary=400)
    assert refusal.value.param == "messages"


def test_a_schema_has_a_time_limit_and_keeps_nobody_else_waiting(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    grammars = Grammars(tokenizer, vocabulary=len(tokenizer), ends=[1], limit_s=0.2)
    monkeypatch.setattr(grammars, "_compile", lambda _: go.wait())

    async def several() -> list[Any]:
        return await asyncio.gather(*(grammars.compile(str(number)) for number in range(3)), return_exceptions=True)

    answers = asyncio.run(several())
    go.set()
    grammars.close()
    assert [type(one) for one in answers] == [RequestRefusedError, RequestRefusedError, OverloadedError]
    assert "too complex" in str(answers[0])


def test_a_token_that_a_schema_forbids_is_an_error_and_so_is_none_left(tokenizer: Any) -> None:
    grammars = Grammars(tokenizer, vocabulary=len(tokenizer), ends=[1])
    grammar = asyncio.run(grammars.compile(SCHEMA))
    [wrong] = tokenizer("x")["input_ids"]
    with pytest.raises(RuntimeError, match="does not allow"):
        grammar.push(wrong)
    sampler = Sampler(Sampling(temperature=0.0), lambda: torch.zeros(4, dtype=torch.bool))
    [drawn] = draw(torch.ones(1, 4), [sampler])
    assert isinstance(drawn, ArithmeticError)


def test_a_token_with_characters_that_are_no_bytes_stands_for_itself(tokenizer: Any) -> None:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"]["日x"] = len(tokenizer)
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    [*ids] = [len(tokenizer), *odd("é")["input_ids"]]
    stream = TokenTexts(odd).stream()
    assert "".join(map(stream.push, ids)) == odd.decode(ids) == "日xé"


def test_neighbouring_seeds_draw_apart() -> None:
    assert len({Sampler(Sampling(seed=seed)).uniform() for seed in (-1, 0, 1)}) == 3


def test_padding_reads_no_request() -> None:
    keys, values = torch.ones(5, 1, 8), torch.ones(5, 1, 8)
    keys[0] = values[0] = torch.nan  # what a request that went wrong left
    keys[4] = values[4] = 0.0
    spans = [Span(0, 1, 0, torch.tensor([1])), Span(1, 1, 1, torch.tensor([2, 3]))]
    out = _decode_padded(torch.ones(2, 1, 8), keys, values, spans, 1, scale=None, window=None)
    assert torch.equal(out, torch.ones(2, 1, 8))


def test_adapters_answer_beside_one_another(
    engine: HfEngine, adapters: dict[str, Path], tiny_model: Path, tokenizer: Any
) -> None:
    assert engine.info.adapters == ("formal", "terse")
    ids = tokenizer(TEXT)["input_ids"]
    answers = ask(engine, *(completion(ids, adapter=name) for name in (None, "terse", "formal", "terse", None)))
    expected = {None: generated(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer, ids, 20)}
    for name, folder in adapters.items():
        adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
        expected[name] = generated(adapted, tokenizer, ids, 20)
    assert [text for text, _, _ in answers] == [expected[name] for name in (None, "terse", "formal", "terse", None)]
    assert len(set(expected.values())) == 3


def test_tools_reach_a_template_that_reads_them(tiny_model: Path) -> None:
    loaded = load(tiny_model, "none", device="cpu")
    loaded.tokenizer.chat_template = (
        "{{ tools[0].function.name }}{% for m in messages %}{{ m.content or m.tool_calls[0].function.arguments.path }}"
        "{% endfor %}"
    )
    engine = HfEngine(loaded)
    call = {"id": "c", "type": "function", "function": {"name": "join", "arguments": {"path": "b"}}}
    messages = (*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]})
    tools = ({"type": "function", "function": {"name": "join"}},)
    [events] = listen(
        engine, EngineRequest(id="a", messages=messages, tools=tools, echo=True, sampling=Sampling(max_tokens=1))
    )
    assert events[0].text == "joinWhat does os.path.join do?b"
    engine.close()
