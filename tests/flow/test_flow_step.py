"""A step: computed once, recorded always, and healed when its bytes are gone."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmray import artifact
from llmray.artifact import Artifact
from llmray.errors import GateRefusedError, InputError
from llmray.flow.run import open_run
from llmray.flow.step import Step, charge, step, work_folder
from llmray.registry.records import StepRecord
from llmray.registry.registry import Registry

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()
    TROUBLE.clear()


@dataclass(frozen=True, kw_only=True)
class Options:
    by: int = 2
    workers: int = field(default=1, metadata={"identity": False})


@step()
def multiply(number: int, options: Options = Options()) -> int:
    """A product."""
    CALLS.append("multiply")
    charge(core_seconds=2.5, gpu_seconds=0.5)
    return number * options.by


@step()
def write(text: str, parent: Artifact | None = None) -> Artifact:
    CALLS.append("write")
    with artifact.draft("dataset") as draft:
        (draft.folder / "a.txt").write_text(text)
        (draft.folder / "b.txt").write_text(text)
        return draft.seal(parents={} if parent is None else {"from": parent.digest})


@step(name="both", version=3)
def pair(number: int) -> dict[str, Any]:
    CALLS.append("pair")
    return {"product": multiply(number), "data": [write(str(number))], "nothing": None}


TROUBLE: list[BaseException] = []


@step()
def fragile() -> str:
    CALLS.append("fragile")
    half = work_folder() / "half"
    found = half.exists()
    half.write_text("half")
    if TROUBLE:
        raise TROUBLE[0]
    return "went on" if found else "began"


@step()
def giving(what: str) -> Any:
    CALLS.append("giving")
    values = {"object": object(), "nan": float("nan"), "tuple": (1, (2.5, "x")), "set": {1}, "options": Options()}
    return values[what]


def last(name: str, count: int = 1) -> list[StepRecord]:
    with Registry.open() as registry:
        return registry.last_steps(name, count)


def statuses(name: str) -> list[str]:
    return [record.status for record in reversed(last(name, 20))]


def test_a_miss_and_then_a_hit() -> None:
    assert multiply(3) == 6
    assert multiply(3) == 6
    assert CALLS == ["multiply"]
    assert statuses("multiply") == ["done", "cached"]
    hit, miss = last("multiply", 2)
    assert hit.key == miss.key
    assert hit.run_id != miss.run_id
    assert hit.outputs == miss.outputs == {"value": 6}
    assert miss.fields["number"] == "3"
    assert miss.fields["options.by"] == "2"


@pytest.mark.parametrize(
    "call",
    [
        lambda: multiply(number=3),
        lambda: multiply(3, Options()),
        lambda: multiply(3, options=Options(by=2)),
        lambda: multiply(3, Options(workers=64)),
    ],
)
def test_the_same_call_written_otherwise_is_a_hit(call: Callable[[], int]) -> None:
    assert multiply(3) == call() == 6
    assert CALLS == ["multiply"]


def test_other_arguments_are_a_miss() -> None:
    assert [multiply(3), multiply(4), multiply(3, Options(by=5))] == [6, 8, 15]
    assert len(CALLS) == 3


def test_another_version_is_a_miss() -> None:
    newer = Step(multiply.function, name="multiply", version=2, resources=None)
    assert multiply(3) == newer(3)
    assert len(CALLS) == 2


def test_what_it_costs_is_charged_once() -> None:
    multiply(3)
    multiply(3)
    with Registry.open() as registry:
        [spent] = registry.spend()
    assert (spent.step, spent.core_seconds, spent.gpu_seconds, spent.money) == ("multiply", 2.5, 0.5, 0.0)


def test_with_a_price_list_it_is_charged_in_money_too_and_a_price_is_no_reason_to_run_again(llmray_home: Path) -> None:
    llmray_home.mkdir(exist_ok=True)
    for core_hour in (3600, 7200):
        (llmray_home / "prices.yaml").write_text(f"{{currency: EUR, core_hour: {core_hour}, gpu_hour: 720}}")
        multiply(3)
    with Registry.open() as registry:
        assert [one.money for one in registry.spend()] == [2.6]


def test_outside_a_step_nothing_is_charged_and_there_is_no_work_folder() -> None:
    charge(core_seconds=1)
    with pytest.raises(InputError, match="for the body of a @step"):
        work_folder()


def test_artifacts_come_back_and_are_in_the_registry_with_their_lineage() -> None:
    first = write("a")
    second = write("b", parent=first)
    assert write("b", parent=first) == second
    assert len(CALLS) == 2
    with Registry.open() as registry:
        assert registry.artifact(second.digest).uri == second.uri
        assert registry.artifact(second.digest).manifest["parents"] == {"from": first.digest}
        assert registry.steps(last("write", 3)[-1].run_id)[0].outputs == {
            "value": {"$artifact": first.uri, "digest": first.digest}
        }


@pytest.mark.parametrize("lose", ["a file", "the manifest", "all", "half a file"])
def test_a_hit_whose_bytes_are_gone_is_a_loud_miss_and_heals(lose: str, caplog: pytest.LogCaptureFixture) -> None:
    made = write("text")
    folder = Path(made.uri)
    match lose:
        case "a file":
            (folder / "b.txt").unlink()
        case "the manifest":
            (folder / artifact.MANIFEST).unlink()
        case "all":
            shutil.rmtree(folder)
        case "half a file":
            (folder / "b.txt").write_text("te")
    with caplog.at_level(logging.WARNING, logger="llmray.flow.step"):
        again = write("text")
    [record] = caplog.records
    assert "the cache knows this result but" in record.getMessage()
    assert again == made
    assert artifact.verify(again) == []
    assert CALLS == ["write", "write"]
    assert write("text") == made
    assert CALLS == ["write", "write"]


def test_steps_in_a_run_and_steps_in_steps_are_of_one_run() -> None:
    with open_run("pipeline") as run:
        result = pair(4)
        assert multiply(4) == 8
    assert CALLS == ["pair", "multiply", "write"]
    assert result["product"] == 8
    assert artifact.verify(result["data"][0]) == []
    with Registry.open() as registry:
        records = registry.steps(run.id)
        assert [(r.step, r.status) for r in records] == [
            ("both", "done"), ("multiply", "done"), ("write", "done"), ("multiply", "cached"),
        ]  # fmt: skip
        assert [r.run_id for r in registry.runs()] == [run.id]
    assert pair(4) == result
    assert len(CALLS) == 3


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("broke"), "failed"), (GateRefusedError("broke"), "refused"), (KeyboardInterrupt("broke"), "stopped")],
)
def test_a_step_that_fails_is_recorded_and_not_kept(error: BaseException, status: str) -> None:
    TROUBLE.append(error)
    for _ in range(2):
        with pytest.raises(type(error), match="broke"):
            fragile()
    assert len(CALLS) == 2
    assert statuses("fragile") == ["failed", "failed"]
    [record] = last("fragile")
    assert record.outputs is None
    with Registry.open() as registry:
        assert [run.status for run in registry.runs()] == [status, status]
        assert registry.cache_get(record.key) is None
        assert registry.lease_owner(record.key) is None


def test_the_work_folder_outlives_a_failure_and_is_gone_after_success(llmray_home: Path) -> None:
    TROUBLE.append(ValueError("broke"))
    with pytest.raises(ValueError, match="broke"):
        fragile()
    [kept] = (llmray_home / "work").iterdir()
    assert [path.name for path in kept.glob("*/half")] == ["half"]
    TROUBLE.clear()
    assert fragile() == "went on"
    assert not kept.exists()


def test_a_result_is_the_same_value_from_the_cache_or_not() -> None:
    assert giving("tuple") == giving("tuple") == [1, [2.5, "x"]]
    assert CALLS == ["giving"]


@pytest.mark.parametrize(
    ("what", "message"),
    [("object", "a step returned object"), ("set", "a step returned set"), ("options", "Options"), ("nan", "JSON")],
)
def test_a_result_that_cannot_be_kept_is_refused_and_the_step_has_failed(what: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        giving(what)
    assert statuses("giving") == ["failed"]


def test_a_step_looks_like_its_function() -> None:
    assert (multiply.__name__, multiply.__doc__) == ("multiply", "A product.")
    assert multiply.function(7) == 14
    assert (pair.name, pair.version, pair.resources) == ("both", 3, None)
    with Registry.open() as registry:
        assert registry.step_names() == []


def test_a_call_that_does_not_fit_the_function_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument"):
        multiply()  # type: ignore[call-arg]
