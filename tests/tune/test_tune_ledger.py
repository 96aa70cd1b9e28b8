"""spent + reserved <= budget: by random histories, by processes that race, and by one that is killed."""

import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmray.errors import BudgetExhaustedError, ConfigError, InputError
from llmray.tune.ledger import Budget, Ledger

LIMIT = 10.0
amounts = st.floats(0, 4, allow_nan=False)


class LedgerMachine(RuleBasedStateMachine):
    """Any history of reservations, settlements and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.jsonl"
        self.ledger = Ledger(self.path, Budget(core_seconds=LIMIT, money=3.0))
        self.open: dict[str, tuple[float, float]] = {}
        self.spent = 0.0

    @rule(cores=amounts, money=amounts)
    def reserve(self, cores: float, money: float) -> None:
        committed = self.spent + sum(c for c, _ in self.open.values())
        try:
            entry = self.ledger.reserve({"core_seconds": cores, "money": money})
        except BudgetExhaustedError:
            assert committed + cores > LIMIT - 1e-6 or money > 0
        else:
            self.open[entry] = (cores, money)

    @rule(share=st.floats(0, 2))
    def settle(self, share: float) -> None:
        if self.open:
            entry, (cores, money) = self.open.popitem()
            self.ledger.settle(entry, {"core_seconds": cores * share, "money": money})
            self.spent += cores * min(share, 1.0)

    @rule()
    def open_again(self) -> None:
        self.ledger = Ledger(self.path, Budget(core_seconds=LIMIT, money=3.0))

    @rule()
    def half_a_line_is_left_by_a_crash(self) -> None:
        with self.path.open("ab") as file:
            file.write(b'{"reserve": "x", "amou')

    @invariant()
    def holds(self) -> None:
        balance = self.ledger.balance()
        assert balance.spent["core_seconds"] == pytest.approx(self.spent)
        assert balance.reserved["core_seconds"] == pytest.approx(sum(c for c, _ in self.open.values()))
        for left in balance.left.values():
            assert left >= 0

    def teardown(self) -> None:
        self.folder.cleanup()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def spend(path: str, won: "multiprocessing.Queue[int]") -> None:
    ledger = Ledger(Path(path), Budget(core_seconds=LIMIT))
    count = 0
    for _ in range(40):
        try:
            ledger.settle(ledger.reserve({"core_seconds": 0.5}), {"core_seconds": 0.3})
        except BudgetExhaustedError:
            break
        count += 1
    won.put(count)


def test_processes_that_race_never_overspend(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    won: multiprocessing.Queue[int] = context.Queue()
    path = tmp_path / "ledger.jsonl"
    workers = [context.Process(target=spend, args=(str(path), won)) for _ in range(3)]
    for worker in workers:
        worker.start()
    total = sum(won.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    balance = Ledger(path, Budget(core_seconds=LIMIT)).balance()
    assert balance.spent["core_seconds"] == pytest.approx(0.3 * total)
    assert LIMIT - 2.0 < balance.spent["core_seconds"] <= LIMIT
    assert balance.reserved["core_seconds"] == 0


def reserve_and_hang(path: str, ready: "multiprocessing.Queue[str]") -> None:
    ready.put(Ledger(Path(path), Budget(core_seconds=LIMIT)).reserve({"core_seconds": 7}))
    signal.pause()


def test_a_killed_owner_is_charged_in_full(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue[str] = context.Queue()
    path = tmp_path / "ledger.jsonl"
    owner = context.Process(target=reserve_and_hang, args=(str(path), ready))
    owner.start()
    ready.get(timeout=60)
    budget = Budget(core_seconds=LIMIT)
    assert Ledger(path, budget).balance().reserved["core_seconds"] == 7
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    ledger = Ledger(path, budget)
    assert (ledger.balance().reserved["core_seconds"], ledger.balance().spent["core_seconds"]) == (0, 7)
    with pytest.raises(BudgetExhaustedError, match="3 left, and 4 are needed"):
        ledger.reserve({"core_seconds": 4})


def test_a_process_id_that_is_used_again_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Budget(core_seconds=LIMIT))
    ledger.reserve({"core_seconds": 2})
    line = json.loads(path.read_text())
    line["owner"]["started"] = "1"
    path.write_text(json.dumps(line) + "\n")
    assert Ledger(path, Budget(core_seconds=LIMIT)).balance().spent["core_seconds"] == 2


def test_spending_more_than_reserved_is_written_down_but_not_charged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Budget(core_seconds=LIMIT))
    ledger.settle(ledger.reserve({"core_seconds": 2}), {"core_seconds": 5})
    assert ledger.balance().spent["core_seconds"] == 2
    assert json.loads(path.read_text().splitlines()[-1])["overrun"] == {"core_seconds": 3}


def test_settling_twice_counts_once_and_the_unknown_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget(core_seconds=LIMIT))
    entry = ledger.reserve({"core_seconds": 2})
    ledger.settle(entry, {"core_seconds": 1})
    ledger.settle(entry, {"core_seconds": 2})
    assert ledger.balance().spent["core_seconds"] == 1
    with pytest.raises(InputError, match="no reservation"):
        ledger.settle("nothing", {})
    with pytest.raises(InputError, match="currency"):
        ledger.reserve({"dollars": 1})
    with pytest.raises(InputError, match="cannot be reserved"):
        ledger.reserve({"core_seconds": -1})


def test_a_currency_without_a_limit_is_counted_but_not_held(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget(core_seconds=LIMIT))
    ledger.settle(ledger.reserve({"gpu_seconds": 1e6}), {"gpu_seconds": 1e6})
    assert ledger.balance().spent["gpu_seconds"] == 1e6


def test_a_budget_needs_a_limit() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Budget()
    with pytest.raises(ConfigError, match="above zero"):
        Budget(core_seconds=0)
