"""A budget on disk: spent + reserved <= budget at every moment, whoever is killed when.

Work is paid for before it starts: a reservation for the most that it can cost, settled afterwards for what it did cost.
The ledger is an append-only file of JSON lines under one lock, so it is also the account of what happened. A process
that dies keeps its reservations open; whoever opens the ledger next charges them in full, since nobody knows how much
was used. Rejected: checking a running total before each trial (two trials that check at once both pass), and a budget
of trials, which is not what anybody pays for.
"""

import fcntl
import json
import math
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from llmray.errors import BudgetExhaustedError, ConfigError, InputError
from llmray.storage import disk_errors

Amounts = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What may be spent, in any of four currencies; None in a currency is no limit, and at least one has one."""

    core_seconds: float | None = None
    """Cores times seconds."""
    gpu_seconds: float | None = None
    """GPUs times seconds."""
    money: float | None = None
    """In whatever currency the prices are."""
    tokens: float | None = None
    """Training tokens."""

    def __post_init__(self) -> None:
        if not self.limits():
            raise ConfigError("budget is empty: set at least one of core_seconds, gpu_seconds, money, tokens")
        for name, limit in self.limits().items():
            if not (limit > 0 and math.isfinite(limit)):
                raise ConfigError(f"budget.{name} ({limit}) must be a number above zero")

    def limits(self) -> dict[str, float]:
        """The currencies that have a limit."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(limit) for name, limit in named.items() if limit is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    spent: Amounts
    """Settled, by currency."""
    reserved: Amounts
    """Set aside for what runs."""
    left: Amounts
    """Limit less both, for currencies with a limit."""


class Ledger:
    """One budget's account; any number of processes of one machine may hold it open."""

    def __init__(self, path: Path, budget: Budget) -> None:
        """Open an account, or take one up and charge what its dead owners had reserved.

        A larger budget than before extends the account; a smaller one holds for what comes.

        Raises:
            UnavailableError: the disk is full, read-only or forbidden.
        """
        self._path = path
        self._budget = budget
        with disk_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as (file, account):
            for entry_id, reservation in account.open.items():
                if not _is_alive(reservation.owner):
                    _append(file, {"settle": entry_id, "amounts": reservation.amounts, "note": "its owner died"})

    def reserve(self, amounts: Amounts, *, note: str = "") -> str:
        """Set an amount aside, in every currency or in none.

        Returns:
            The reservation's id, for `settle`.

        Raises:
            BudgetExhaustedError: it does not fit; nothing was reserved.
            InputError: an unknown currency or a negative amount.
        """
        wanted = _checked(amounts)
        with self._locked() as (file, account):
            for name, limit in self._budget.limits().items():
                amount = wanted.get(name, 0.0)
                if amount and account.committed(name, amount) > limit:
                    left = limit - account.committed(name)
                    raise BudgetExhaustedError(
                        f"the budget of {limit:g} {name} has {max(0.0, left):g} left, and {amount:g} are needed: "
                        f"raise budget.{name}"
                    )
            entry_id = uuid.uuid4().hex
            _append(file, {"reserve": entry_id, "amounts": wanted, "owner": _myself(), "note": note})
        return entry_id

    def settle(self, reservation_id: str, amounts: Amounts, *, note: str = "") -> None:
        """Replace a reservation by what was spent.

        What exceeds the reservation cannot be unspent and must not break the account: it is charged up to the
        reservation and the rest is written down as `overrun`. Settling twice counts once.

        Raises:
            InputError: no such reservation.
        """
        used = _checked(amounts)
        with self._locked() as (file, account):
            if reservation_id in account.settled:
                return
            if reservation_id not in account.open:
                raise InputError(f"the ledger {self._path} has no reservation {reservation_id}")
            reserved = account.open[reservation_id].amounts
            charged = {name: min(amount, reserved.get(name, 0.0)) for name, amount in used.items()}
            overrun = {name: amount - charged[name] for name, amount in used.items() if amount > charged[name]}
            line: dict[str, Any] = {"settle": reservation_id, "amounts": charged, "note": note}
            _append(file, {**line, "overrun": overrun} if overrun else line)

    def balance(self) -> Balance:
        """Where the account stands."""
        with self._locked() as (_, account):
            names = [field.name for field in fields(Budget)]
            return Balance(
                spent={name: account.total("spent", name) for name in names},
                reserved={name: account.total("reserved", name) for name in names},
                left={name: limit - account.committed(name) for name, limit in self._budget.limits().items()},
            )

    @contextmanager
    def _locked(self) -> Iterator[tuple[IO[bytes], "_Account"]]:
        with disk_errors(str(self._path)), self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, _read(file)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reservation:
    amounts: dict[str, float]
    owner: Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class _Account:
    open: dict[str, _Reservation] = field(default_factory=dict)
    settled: dict[str, dict[str, float]] = field(default_factory=dict)

    def total(self, what: str, name: str) -> float:
        amounts = self.settled.values() if what == "spent" else [entry.amounts for entry in self.open.values()]
        return math.fsum(amount.get(name, 0.0) for amount in amounts)

    def committed(self, name: str, more: float = 0.0) -> float:
        """Spent and reserved and `more`, rounded once: `fsum` is exact, so the sum cannot creep past the limit."""
        parts = [amounts.get(name, 0.0) for amounts in self.settled.values()]
        parts += [entry.amounts.get(name, 0.0) for entry in self.open.values()]
        return math.fsum([*parts, more])


def _read(file: IO[bytes]) -> _Account:
    """Replay the account; cut off the half line that a killed writer left."""
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
    account = _Account()
    for line in data[:whole].splitlines():
        entry = json.loads(line)
        if "reserve" in entry:
            account.open[entry["reserve"]] = _Reservation(amounts=entry["amounts"], owner=entry["owner"])
        else:
            account.open.pop(entry["settle"], None)
            account.settled[entry["settle"]] = entry["amounts"]
    return account


def _append(file: IO[bytes], entry: Mapping[str, Any]) -> None:
    file.write(json.dumps(entry).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _checked(amounts: Amounts) -> dict[str, float]:
    known = {field.name for field in fields(Budget)}
    for name, amount in amounts.items():
        if name not in known:
            raise InputError(f"{name} is no currency of a budget: use {', '.join(sorted(known))}")
        if not (amount >= 0 and math.isfinite(amount)):
            raise InputError(f"{amount} {name} cannot be reserved or spent")
    return {name: float(amount) for name, amount in amounts.items()}


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether a reservation's process still runs; on another machine it is taken to."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(_started(owner["pid"]) == owner["started"])


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot, so that a process id used again is not mistaken; None off Linux."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return "ended" if state in "ZX" else rest[18]
