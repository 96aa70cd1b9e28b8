"""What each task asks and what it makes of the answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from random_llama import conversation

from llmray.errors import ConfigError
from llmray.evaluate.tasks import (
    Choice,
    Heldout,
    HeldoutBytes,
    Item,
    Likelihood,
    Preference,
    PreferenceMargin,
    Request,
    resolve_task,
)

ROW: dict[str, Any] = conversation("Which module?", "os", choices=["os", "base64"])


class Shortest:
    """A user's own task."""

    name = "shortest"
    metric = "bytes"
    shape = "messages"

    def requests(self, row: Mapping[str, Any]) -> Sequence[Request]:
        return [Request(messages=tuple(row["messages"]))]

    def item(self, row: Mapping[str, Any], likelihoods: Sequence[Likelihood]) -> Item | None:
        return Item(float(likelihoods[0].num_bytes), 1.0)


def test_heldout_is_a_mean_per_token_or_per_byte() -> None:
    answer = [Likelihood(-12.0, 4, 6, True)]
    assert Heldout().item(ROW, answer) == Item(3.0, 4.0)
    assert HeldoutBytes().item(ROW, answer) == Item(2.0, 6.0)
    assert Heldout().item(ROW, [Likelihood(0.0, 0, 6, True)]) is None


def test_what_was_cut_has_no_loss_per_byte() -> None:
    """Where it is cut depends on the tokenizer: two models would be measured on different texts."""
    assert HeldoutBytes().item(ROW, [Likelihood(-12.0, 4, 6, False)]) is None
    long = {**ROW, "messages": [{"role": "user", "content": "é" * 300}, {"role": "assistant", "content": "os"}]}
    assert HeldoutBytes().requests(long) == []
    assert len(Heldout().requests(long)) == 1


def test_choice_asks_for_each_answer_in_the_place_of_the_right_one() -> None:
    requests = Choice().requests(ROW)
    assert [request.messages[-1]["content"] for request in requests] == ["os", "base64"]
    assert all(request.messages[0]["content"] == "Which module?" for request in requests)


@pytest.mark.parametrize("row", [{**ROW, "choices": None}, {**ROW, "choices": ["math"]}, {**ROW, "choices": []}])
def test_choice_passes_over_rows_without_a_right_answer(row: dict[str, Any]) -> None:
    assert Choice().requests(row) == []


def test_choice_divides_by_bytes_so_that_short_answers_gain_nothing() -> None:
    assert Choice().item(ROW, [Likelihood(-4.0, 1, 2, True), Likelihood(-6.0, 3, 6, True)]) == Item(0.0, 1.0)
    assert Choice().item(ROW, [Likelihood(-1.0, 1, 2, True), Likelihood(-6.0, 3, 6, True)]) == Item(1.0, 1.0)


def test_a_tie_is_wrong() -> None:
    assert Choice().item(ROW, [Likelihood(-2.0, 1, 2, True), Likelihood(-6.0, 3, 6, True)]) == Item(0.0, 1.0)


def test_preference_wants_the_chosen_one_likelier() -> None:
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    assert [request.messages[-1]["content"] for request in Preference().requests(row)] == ["yes", "no"]
    assert Preference().item(row, [Likelihood(-1.0, 1, 3, True), Likelihood(-1.0, 1, 2, True)]) == Item(1.0, 1.0)


def test_preference_margin_is_a_difference_per_byte() -> None:
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    assert PreferenceMargin().item(row, [Likelihood(-3.0, 1, 3, True), Likelihood(-5.0, 1, 2, True)]) == Item(1.5, 1.0)
    assert PreferenceMargin().item(row, [Likelihood(-3.0, 1, 3, True), Likelihood(-1.0, 1, 0, True)]) is None


def test_a_users_own_task_is_found_by_module_and_attribute() -> None:
    assert resolve_task(f"{__name__}:Shortest").name == "shortest"


@pytest.mark.parametrize("name", ["nothing", "no.such.module:Task", "json:loads", f"{__name__}:Missing"])
def test_what_is_no_task_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.tasks"):
        resolve_task(name)
