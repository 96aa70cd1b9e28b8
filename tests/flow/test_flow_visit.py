"""Looking at the monitor while people ask: only what has settled counts."""

from collections.abc import Sequence

import pytest

from llmray.flow.traffic import Question
from llmray.flow.visit import Observed, Reply, Watch

QUESTIONS = [Question(id=f"q{number}", text=f"question {number}?", answer="") for number in range(12)]


class Scripted:
    """Answers everything, and says of the monitor what it was told to, one look after another."""

    def __init__(self, *looks: Observed | None) -> None:
        self.looks = list(looks)
        self.asked: list[str] = []

    def monitor(self) -> Observed | None:
        return self.looks.pop(0)

    def ask(self, questions: Sequence[Question], *, temperature: float, seed: int = 0) -> list[Reply]:
        self.asked += [question.id for question in questions]
        return [
            Reply(question=question, output_id=question.id, text="yes", model_digest="m", seconds=0.1)
            for question in questions
        ]


def look(answers: int, *, statistic: float = 1.0, alarms: int = 0, undelivered: int = 0) -> Observed:
    return Observed(answers=answers, statistic=statistic, alarms=alarms, undelivered=undelivered)


@pytest.mark.parametrize(
    "not_yet",
    [None, look(103, alarms=2), look(104, statistic=9.0, alarms=3, undelivered=1)],
    ids=["no word", "behind", "on its way"],
)
def test_a_look_that_has_not_settled_does_not_count(not_yet: Observed | None) -> None:
    there = Scripted(look(100, alarms=2), not_yet, look(104, statistic=7.0, alarms=3))
    watch = Watch(there)
    replies = watch.ask(QUESTIONS, temperature=0.0, seed=0, until_alarm=True)
    assert there.looks == []
    assert (watch.asked, watch.alarms, watch.curve) == (4, 1, [(4, 7.0)])
    assert [reply.question.id for reply in replies] == there.asked == ["q0", "q1", "q2", "q3"]


def test_without_an_alarm_everything_is_asked() -> None:
    there = Scripted(None, look(5), look(15), look(17))
    watch = Watch(there)
    replies = watch.ask(QUESTIONS, temperature=0.0, seed=0)
    assert (len(replies), watch.asked, watch.alarms) == (12, 12, 0)
    assert [answers for answers, _ in watch.curve] == [10, 12]
