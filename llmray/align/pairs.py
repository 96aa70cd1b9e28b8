"""From feedback to preference records: who was preferred to whom, for which prompt, and why the rest was left out.

Every piece of feedback is used or counted under one reason. What contradicts itself teaches nothing and goes on both
sides: a majority of two against one is no evidence. The result depends on the set of feedback alone, never on its
order. Pure; it takes anything with the fields of the registry's `Output` and `Feedback`, and knows no registry.
Rejected: pairs across prompts (which answer is better then says more about the question), and pairs from thumbs of two
answers to one prompt (a thumb up and a thumb down by different people need not mean that one would prefer the first).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmray.digest import digest_of
from llmray.errors import InputError

Reason = Literal[
    "no_pair",
    "unknown_output",
    "other_messages",
    "no_question",
    "no_answer",
    "identical",
    "contradicted",
    "duplicate",
]
"""Why feedback gave no record of its own:

no_pair: a thumb or a rating; unknown_output: it speaks of an output that was not given; other_messages: the two answers
answer different conversations; no_question: the conversation does not end with a user's message; no_answer: the chosen
text is blank (a rejected one may be: white space is what bad models say), or the rejected one empty; identical: they are
equal but for white space; contradicted: somebody said the opposite; duplicate: somebody said the same.
"""

Message = Mapping[str, Any]


class Answer(Protocol):
    """What is needed of an output."""

    @property
    def messages(self) -> Sequence[Message]: ...
    @property
    def completion(self) -> str: ...


class Opinion(Protocol):
    """What is needed of feedback."""

    @property
    def id(self) -> str: ...
    @property
    def output_id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> Mapping[str, Any]: ...
    @property
    def other_output_id(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceData:
    records: Sequence[Mapping[str, str]]
    """`{"prompt", "chosen", "rejected", "group"}` each, in the order of the digests of their content."""
    feedback_in: int
    """Pieces of feedback looked at."""
    left_out: Mapping[Reason, int]
    """Pieces of feedback that gave no record of their own, by reason."""
    used: Sequence[str]
    """Ids of the feedback behind the records, one for each, sorted: of those that say the same, the smallest id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    feedback_id: str
    prompt: str
    chosen: str
    rejected: str


def preference_data(
    feedback: Iterable[Opinion],
    outputs: Mapping[str, Answer],
    *,
    group: Callable[[str], str | None] | None = None,
) -> PreferenceData:
    """Turn preferences and corrections into records for alignment.

    Args:
        feedback: of every kind; in a `preference` `output_id` won and `other_output_id` lost, a `correction` has the
            better text in `value["text"]`.
        outputs: the outputs that feedback speaks of, by id.
        group: prompt to group, so that a split puts all pairs of a question on one side; the digest of the prompt
            where it is absent or returns None.

    Raises:
        InputError: a preference without a loser, or a correction without a text.
    """
    ordered = sorted(feedback, key=lambda opinion: opinion.id)
    reasons: Counter[Reason] = Counter()
    found: dict[tuple[str, str, str], _Pair] = {}
    for opinion in ordered:
        pair = _pair(opinion, outputs)
        if not isinstance(pair, _Pair):
            reasons[pair] += 1
            continue
        key = _said(pair)
        if key in found:
            reasons["duplicate"] += 1
        found.setdefault(key, pair)
    contradicted = {key for key in found if (key[0], key[2], key[1]) in found}
    reasons["contradicted"] += len(contradicted)
    kept = [pair for key, pair in found.items() if key not in contradicted]
    records = sorted((_record(pair, group) for pair in kept), key=lambda record: digest_of(_content(record)))
    data = PreferenceData(
        records=records,
        feedback_in=len(ordered),
        left_out={reason: count for reason, count in sorted(reasons.items()) if count},
        used=sorted(pair.feedback_id for pair in kept),
    )
    assert data.feedback_in == len(data.used) + sum(data.left_out.values())
    return data


def prompt_of(messages: Sequence[Message]) -> str | None:
    """The prompt of a conversation: its last user message; None where it does not end with one.

    Where other turns came before (a system message, earlier rounds), they stand first, each as `Role:` on a line of its
    own, the text, and an empty line: a record has one text for a prompt, and two conversations that end with the same
    question must stay two prompts.
    """
    if not messages or messages[-1]["role"] != "user":
        return None
    *earlier, last = messages
    turns = [f"{message['role'].capitalize()}:\n{message['content']}\n\n" for message in earlier]
    return "".join(turns) + str(last["content"])


def _pair(opinion: Opinion, outputs: Mapping[str, Answer]) -> _Pair | Reason:
    """What one piece of feedback says, or why it says nothing."""
    if opinion.kind not in ("preference", "correction"):
        return "no_pair"
    this = outputs.get(opinion.output_id)
    if this is None:
        return "unknown_output"
    if opinion.kind == "correction":
        chosen, rejected = _text(opinion), this.completion
    else:
        loser = outputs.get(_loser_id(opinion))
        if loser is None:
            return "unknown_output"
        if _turns(this) != _turns(loser):
            return "other_messages"
        chosen, rejected = this.completion, loser.completion
    prompt = prompt_of(this.messages)
    if prompt is None:
        return "no_question"
    if not chosen.strip() or not rejected:
        return "no_answer"
    if chosen.strip() == rejected.strip():
        return "identical"
    return _Pair(feedback_id=opinion.id, prompt=prompt, chosen=chosen, rejected=rejected)


def _loser_id(opinion: Opinion) -> str:
    if opinion.other_output_id is None:
        raise InputError(f"feedback {opinion.id} is a preference without other_output_id, the answer that lost")
    return opinion.other_output_id


def _text(opinion: Opinion) -> str:
    text = opinion.value.get("text")
    if not isinstance(text, str):
        raise InputError(f"feedback {opinion.id} is a correction whose value has no text")
    return text


def _turns(answer: Answer) -> list[tuple[Any, Any]]:
    return [(message["role"], message["content"]) for message in answer.messages]


def _said(pair: _Pair) -> tuple[str, str, str]:
    """What makes two pairs say the same: white space around an answer does not tell them apart."""
    return pair.prompt, pair.chosen.strip(), pair.rejected.strip()


def _record(pair: _Pair, group: Callable[[str], str | None] | None) -> dict[str, str]:
    content = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    named = group(pair.prompt) if group is not None else None
    return {**content, "group": digest_of(pair.prompt) if named is None else named}


def _content(record: Mapping[str, str]) -> list[str]:
    return [record["prompt"], record["chosen"], record["rejected"]]
