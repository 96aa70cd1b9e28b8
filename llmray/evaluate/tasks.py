"""Tasks: what is asked of a model about a row, and what the log-likelihoods of its answers are worth.

A task is asked for requests, gets one `Likelihood` for each, and returns a value: no generation, so no sampling noise,
no answer parsing, and the same figure on any number of workers. Your own task is a jsonl of messages with `choices`,
curated into a snapshot; if that is too narrow, it is an object as in `Task`, named `module:attribute`.

Choices are compared by log-likelihood per byte of the answer, as lm-eval's `acc_norm` does for the same reason: the sum
favours short answers, and the mean per token favours answers that the tokenizer cuts finely (Gao, "Multiple Choice
Normalization in LM Evaluation", EleutherAI 2021). A tie for the first place counts as wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from llmray.code_names import load_named
from llmray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    messages: tuple[Mapping[str, str], ...]
    """A conversation, as `role` and `content`; the assistant's part of it is what is scored."""
    keep: Literal["start", "end"] = "start"
    """Which end of a conversation that is too long stays: the start as in training, the end to keep a short answer."""


class Likelihood(NamedTuple):
    total: float
    """Natural logarithm of the probability of the scored tokens."""
    tokens: int
    """Scored tokens; 0 where truncation left none."""
    num_bytes: int
    """UTF-8 bytes of the assistant's text."""
    whole: bool
    """Whether the conversation was scored as it is, with nothing cut off."""


class Item(NamedTuple):
    value: float
    """Accuracy, loss, … of one row."""
    weight: float
    """Its weight in the mean."""


@runtime_checkable
class Task(Protocol):
    name: str
    """Name in tables and policies."""
    metric: str
    """What a value is."""
    shape: str
    """The rows it reads: `messages`, `preference` or `text`."""

    def requests(self, row: Mapping[str, Any]) -> Sequence[Request]:
        """What to score for a row; nothing where the row is not for this task."""
        ...

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:
        """The row's value; None where it has none (no scored token)."""
        ...


class Heldout:
    """Negative log-likelihood per token of the assistant's turns."""

    name = "heldout"
    metric = "nll_per_token"
    shape = "messages"

    def requests(self, row: Mapping[str, Any]) -> Sequence[Request]:
        return [Request(messages=tuple(row["messages"]))]

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:  # noqa: ARG002
        [answer] = likelihoods
        return Item(-answer.total / answer.tokens, float(answer.tokens)) if answer.tokens else None


class HeldoutBytes:
    """Negative log-likelihood per byte of the assistant's turns, which compares models with different tokenizers.

    Where a conversation is cut depends on the tokenizer, so only short ones are asked about, whole.
    """

    name = "heldout_bytes"
    metric = "nll_per_byte"
    shape = "messages"
    longest_bytes = 512

    def requests(self, row: Mapping[str, Any]) -> Sequence[Request]:
        length = sum(len(message["content"].encode()) for message in row["messages"])
        return [Request(messages=tuple(row["messages"]))] if length <= self.longest_bytes else []

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:  # noqa: ARG002
        [answer] = likelihoods
        whole = answer.whole and answer.tokens and answer.num_bytes
        return Item(-answer.total / answer.num_bytes, float(answer.num_bytes)) if whole else None


class Choice:
    """Whether the right answer is the likeliest, per byte, of the row's `choices`."""

    name = "choice"
    metric = "accuracy"
    shape = "messages"

    def requests(self, row: Mapping[str, Any]) -> Sequence[Request]:
        choices, messages = row["choices"], row["messages"]
        if not choices or messages[-1]["role"] != "assistant" or messages[-1]["content"] not in choices:
            return []
        asked = tuple(messages[:-1])
        return [Request(messages=(*asked, {"role": "assistant", "content": text}), keep="end") for text in choices]

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:
        right = row["choices"].index(row["messages"][-1]["content"])
        return _right_is_likeliest(likelihoods, right)


class Preference:
    """Whether the chosen answer is likelier, per byte, than the rejected one."""

    name = "preference"
    metric = "accuracy"
    shape = "preference"

    def requests(self, row: Mapping[str, Any]) -> Sequence[Request]:
        asked = {"role": "user", "content": row["prompt"]}
        answers = (row["chosen"], row["rejected"])
        return [Request(messages=(asked, {"role": "assistant", "content": text}), keep="end") for text in answers]

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:  # noqa: ARG002
        return _right_is_likeliest(likelihoods, 0)


class PreferenceMargin(Preference):
    """How much likelier, per byte, the chosen answer is than the rejected one.

    What alignment moves first: a model that was the author of the rejected answers goes on finding them likely long
    after it has learned which way people lean, so the accuracy alone would need far more pairs to show it.
    """

    name = "preference_margin"
    metric = "nats_per_byte"

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:  # noqa: ARG002
        if any(answer.tokens == 0 or answer.num_bytes == 0 for answer in likelihoods):
            return None
        chosen, rejected = (answer.total / answer.num_bytes for answer in likelihoods)
        return Item(chosen - rejected, 1.0)


BUILT_IN: Mapping[str, type[Task]] = {
    task.name: task for task in (Heldout, HeldoutBytes, Choice, Preference, PreferenceMargin)
}


def resolve_task(name: str) -> Task:
    """The task of a name: a built-in one, or `module:attribute` (a task, or a class that makes one without arguments).

    Raises:
        ConfigError: there is no such task, or it lacks part of the protocol.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if ":" not in name:
        raise ConfigError(
            f"evaluate.tasks names {name!r}: use one of {', '.join(BUILT_IN)}, or your own as module:attribute"
        )
    task = load_named(name, "evaluate.tasks")
    task = task() if isinstance(task, type) else task
    if not isinstance(task, Task):
        raise ConfigError(
            f"evaluate.tasks names {name!r}, which needs name, metric, shape, requests(row) and item(row, …)"
        )
    return task


def _right_is_likeliest(likelihoods: Sequence[Likelihood], right: int) -> Item | None:
    if any(answer.tokens == 0 for answer in likelihoods):
        return None
    per_byte = [answer.total / max(1, answer.num_bytes) for answer in likelihoods]
    best = max(per_byte)
    return Item(float(per_byte[right] == best and per_byte.count(best) == 1), 1.0)
