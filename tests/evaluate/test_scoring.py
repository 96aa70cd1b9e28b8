"""Batched log-likelihoods equal the ones computed a sequence at a time by hand."""

from pathlib import Path

import pytest
import torch
from random_llama import MARKED, UNMARKED, write_llama

from llmray.errors import InputError
from llmray.evaluate.scoring import Scorer
from llmray.evaluate.tasks import Request


def talk(*turns: str, keep: str = "start") -> Request:
    roles = ["user", "assistant"] * len(turns)
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False))
    return Request(messages=messages, keep=keep)  # type: ignore[arg-type]


REQUESTS = [
    talk("Which module defines `join`?", "os.path"),
    talk("a", "b" * 40),
    talk("naïve 日本語 😀?", "ein längerer Satz", "noch eine Frage?", "ja"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model"), seed=0)


def by_hand(folder: Path, tokens: list[int], first_scored: int) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[i - 1, tokens[i]]) for i in range(first_scored, len(tokens)))


def test_one_answer_by_hand(folder: Path) -> None:
    scorer = Scorer(folder, max_length=256)
    tokenizer = scorer._tokenizer
    prompt = tokenizer("<s>Q:Which module defines `join`?\nA:", add_special_tokens=False)["input_ids"]
    answer = tokenizer("os.path</s>", add_special_tokens=False)["input_ids"]
    [likelihood] = scorer.score(REQUESTS[:1])
    assert likelihood.tokens == len(answer)
    assert likelihood.num_bytes == len("os.path")
    assert likelihood.total == pytest.approx(by_hand(folder, prompt + answer, len(prompt)), abs=1e-3)


def test_neighbours_in_a_batch_do_not_matter(folder: Path) -> None:
    scorer = Scorer(folder, max_length=256)
    together = scorer.score(REQUESTS)
    alone = [scorer.score([request])[0] for request in REQUESTS]
    assert [t.total for t in together] == pytest.approx([a.total for a in alone], abs=1e-3)
    assert [t.tokens for t in together] == [a.tokens for a in alone]


def test_every_assistant_turn_counts(folder: Path) -> None:
    [both] = Scorer(folder, max_length=256).score([REQUESTS[2]])
    assert both.num_bytes == len("ein längerer Satz".encode()) + len(b"ja")


def test_a_template_without_marks_scores_the_last_turn_alike(folder: Path, tmp_path: Path) -> None:
    assert UNMARKED != MARKED
    plain = Scorer(write_llama(tmp_path, seed=0, template=UNMARKED), max_length=256).score(REQUESTS[:2])
    marked = Scorer(folder, max_length=256).score(REQUESTS[:2])
    assert [p.total for p in plain] == pytest.approx([m.total for m in marked], abs=1e-3)


def test_cutting_keeps_the_end_for_a_choice_and_the_start_otherwise(folder: Path) -> None:
    scorer = Scorer(folder, max_length=16)
    question = "x" * 100
    assert scorer.score([talk(question, "os")])[0].tokens == 0
    kept = scorer.score([talk(question, "os", keep="end")])[0]
    assert kept.tokens > 0
    assert not kept.whole
    assert Scorer(folder, max_length=256).score([talk(question, "os")])[0].whole


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, seed=0, template="")
    with pytest.raises(InputError, match="chat template"):
        Scorer(folder, max_length=16)


def test_a_conversation_that_ends_with_the_user_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="'user'"):
        Scorer(folder, max_length=64).score([talk("only a question")])
