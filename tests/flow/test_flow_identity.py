"""What is in a cache key, and what is not."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.errors import ConfigError
from llmray.flow.identity import cache_key, code_digest, identity_fields, place_digest
from llmray.train.spec import TrainSpec


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    workers: int = field(default=2, metadata={"identity": False})


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 10
    inner: Inner = field(default_factory=Inner)
    log: str = field(default="info", metadata={"identity": False})


def body() -> None: ...


def key(**arguments: Any) -> str:
    return cache_key(identity_fields("train", 1, body, arguments))


def model(digest: str = "a" * 64, **rest: Any) -> Artifact:
    return Artifact(kind="model", digest=digest, uri="/artifacts/model/a", **rest)


def test_the_fields_are_flat_and_named_as_the_user_names_them() -> None:
    fields = identity_fields("train", 3, body, {"model": model(), "config": Config(), "tags": {"a": [1, 2]}, "x": None})
    assert fields.pop("code") == code_digest(body)
    assert fields == {
        "step": "train",
        "version": "3",
        "model": "a" * 64,
        "config.steps": "10",
        "config.inner.lr": "0.1",
        "tags.a": "[1,2]",
        "x": "null",
    }


def test_where_it_runs_is_not_in_the_key() -> None:
    elsewhere = Config(log="debug", inner=Inner(workers=64))
    assert key(config=elsewhere) == key(config=Config())


@pytest.mark.parametrize("other", [Config(steps=11), Config(inner=Inner(lr=0.2))], ids=str)
def test_what_it_does_is_in_the_key(other: Config) -> None:
    assert key(config=other) != key(config=Config())


def test_name_and_version_are_in_the_key() -> None:
    keys = {cache_key(identity_fields(name, version, body, {})) for name, version in (("a", 1), ("a", 2), ("b", 1))}
    assert len(keys) == 3


def test_an_artifact_counts_by_its_content_alone() -> None:
    moved = replace(model(), uri="s3://elsewhere", parents={"data": "b" * 64}, report={"loss": 1.0})
    assert key(model=moved) == key(model=model())
    assert key(model=model("b" * 64)) != key(model=model())


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 2), max_size=4), st.randoms())
def test_the_order_of_a_mapping_is_no_content(values: dict[str, int], draw: Any) -> None:
    shuffled = list(values.items())
    draw.shuffle(shuffled)
    assert key(x=dict(shuffled)) == key(x=values)


def test_long_literals_are_kept_as_digests_and_differ() -> None:
    fields = identity_fields("s", 1, body, {"x": "word " * 100})
    assert len(fields["x"]) == 64
    assert fields["x"] != identity_fields("s", 1, body, {"x": "word " * 101})["x"]


@pytest.mark.parametrize(
    "value", [object(), float("nan"), {1: 2}, len, "x".join], ids=lambda value: type(value).__name__
)
def test_what_has_no_stable_identity_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="argument x cannot be part of a cache key"):
        key(x=value)


def test_a_closure_is_refused_since_what_it_holds_is_unseen() -> None:
    def multiplier(by: int) -> Callable[[int], int]:
        return lambda number: by * number

    with pytest.raises(ConfigError, match="closure"):
        key(x=multiplier(2))


def one() -> int:
    return 1


def two() -> int:
    return 2


def test_functions_of_one_module_are_told_apart() -> None:
    assert key(x=one) != key(x=two)
    assert key(x=lambda: 1) != key(x=lambda: 2)


class Project:
    """A user's folder of modules; `digest` reads them anew."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, source: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)

    def digest(self, module: str, path: str) -> str:
        spec = importlib.util.spec_from_file_location(module, self.root / path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            spec.loader.exec_module(loaded)
        finally:
            sys.dont_write_bytecode = before
        return code_digest(loaded.work)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_code_that_a_script_imports_from_beside_it_counts_and_other_files_do_not(project: Project) -> None:
    project.write("steps.py", "def work():\n    import helper\n    from lib import parts\n")
    for name in ("helper.py", "lib/parts.py", "lib/__init__.py", "deep.py", "other.py"):
        project.write(name, "x = 1\n")
    project.write("helper.py", "import deep\n")
    before = project.digest("steps", "steps.py")
    project.write("other.py", "x = 2\n")
    assert project.digest("steps", "steps.py") == before
    seen = {before}
    for name in ("helper.py", "lib/parts.py", "lib/__init__.py", "deep.py", "steps.py"):
        project.write(name, (project.root / name).read_text() + "# changed\n")
        seen.add(project.digest("steps", "steps.py"))
    assert len(seen) == 6


def test_code_in_a_package_is_found_by_its_whole_name_and_by_dots(project: Project) -> None:
    source = "def work():\n    import acme.whole\n    from . import near\n    from ..far import thing\n    from .sub import x\n"
    project.write("acme/steps/train.py", source)
    for name in ("acme/whole.py", "acme/steps/near.py", "acme/far.py", "acme/steps/sub/__init__.py", "acme/no.py"):
        project.write(name, "thing = x = 1\n")
    before = project.digest("acme.steps.train", "acme/steps/train.py")
    project.write("acme/no.py", "thing = 2\n")
    assert project.digest("acme.steps.train", "acme/steps/train.py") == before
    seen = {before}
    for name in ("acme/whole.py", "acme/steps/near.py", "acme/far.py", "acme/steps/sub/__init__.py"):
        project.write(name, "thing = x = 2\n")
        seen.add(project.digest("acme.steps.train", "acme/steps/train.py"))
    assert len(seen) == 5


def test_a_package_run_as_a_script_is_the_same_code(project: Project) -> None:
    project.write("acme/__init__.py", "")
    project.write("acme/train.py", "def work():\n    import acme.whole\n")
    project.write("acme/whole.py", "")
    assert project.digest("__main__", "acme/train.py") == project.digest("acme.train", "acme/train.py")


def test_where_a_project_lies_is_not_in_the_key(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "elsewhere")
    for each in (project, other):
        each.write("steps.py", "def work():\n    import helper\n")
        each.write("helper.py", "x = 1\n")
    assert project.digest("steps", "steps.py") == other.digest("steps", "steps.py")


def test_what_is_installed_beside_a_users_package_is_not_its_code(project: Project) -> None:
    installed = Project(project.root / "site-packages")
    installed.write("acme/__init__.py", "")
    installed.write("acme/steps.py", "def work():\n    import acme.own\n    import big\n")
    installed.write("acme/own.py", "")
    installed.write("big.py", "")
    before = installed.digest("acme.steps", "acme/steps.py")
    installed.write("big.py", "x = 2\n")
    assert installed.digest("acme.steps", "acme/steps.py") == before
    installed.write("acme/own.py", "x = 2\n")
    assert installed.digest("acme.steps", "acme/steps.py") != before


def test_the_key_of_a_training_step_needs_no_torch_and_knows_the_loop_but_no_pages_and_no_machinery() -> None:
    code = """
import pathlib, sys
from llmray.flow import identity
seen = set()
digest = identity.digest_file
identity.digest_file = lambda path: (seen.add(path.relative_to(identity._PACKAGE).as_posix()), digest(path))[1]
import llmray.train.trainer
identity.code_digest(llmray.train.trainer.train)
assert not {"torch", "ray", "transformers"} & set(sys.modules), "heavy"
print(*sorted(seen))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen = set(done.stdout.split())
    assert {"train/trainer.py", "train/loop.py", "train/engine.py", "train/packing.py", "train/reshard.py"} <= seen
    assert not [name for name in seen if name.startswith(("registry/", "flow/", "serve/", "studio/", "data/"))]
    assert not {"__init__.py", "storage.py", "artifact.py", "errors.py", "console.py"} & seen


def test_a_step_that_uses_the_sdk_depends_on_what_it_names_and_not_on_all_of_it(project: Project) -> None:
    project.write("one.py", "def work():\n    from llmray import artifact\n")
    project.write("two.py", "def work():\n    import llmray as lr\n")
    for name in ("one", "two"):
        source = (project.root / f"{name}.py").read_bytes()
        from llmray.digest import digest_bytes, digest_of

        assert project.digest(name, f"{name}.py") == digest_of({"": digest_bytes(source)})


def test_shapes_that_look_alike_have_keys_of_their_own() -> None:
    shapes: list[Any] = [{}, {"a": {}}, {"a": {"b": 1}}, {"a.b": 1}, {"a": [{}]}, [[]], [], None]
    assert len({key(value=shape) for shape in shapes}) == len(shapes)


def test_an_artifact_in_a_list_of_lists_counts_by_its_content_alone() -> None:
    assert key(models=[[model()]]) == key(models=[[replace(model(), uri="/there")]])
    assert key(models=[[model("a" * 64)]]) != key(models=[[model("b" * 64)]])


@dataclass(frozen=True)
class Named:
    tasks: tuple[str, ...] = field(default=(), metadata={"code": True})
    model: str | None = field(default=None, metadata={"code": True})


def test_code_that_a_config_names_counts_by_its_sources(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("own_tasks.py", "from own_words import WORDS\nTASK = WORDS\n")
    project.write("own_words.py", "WORDS = 1\n")
    monkeypatch.syspath_prepend(project.root)
    named = Named(tasks=("heldout", "own_tasks:TASK"))
    before = key(config=named)
    project.write("own_words.py", "WORDS = 2\n")
    assert key(config=named) != before
    with pytest.raises(ConfigError, match="there is no module own_nothing"):
        key(config=Named(tasks=("own_nothing:TASK",)))


def test_a_folder_is_no_code() -> None:
    assert len({key(config=Named(model=model)) for model in (None, "minilm", "s3://bucket/model", "/models/mini")}) == 4


def test_constants_of_a_set_have_no_order() -> None:
    script = "from llmray.flow.identity import _constant; print(_constant(frozenset('abcdefgh')))"
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_other_workers_are_another_place_and_other_settings_are_not() -> None:
    places = [Config(inner=Inner(workers=1)), Config(inner=Inner(workers=2)), Config(inner=Inner(workers=2, lr=9.0))]
    one, other, same = (place_digest({"config": place}) for place in places)
    assert one != other
    assert other == same


def test_factors_count_as_their_product_and_work_begun_with_some_goes_on_with_others() -> None:
    one = TrainSpec(num_workers=2, micro_batch=4)
    other = TrainSpec(num_workers=1, micro_batch=2, accumulation=4, zero=3)
    assert key(spec=one) == key(spec=other)
    assert place_digest({"spec": one}) == place_digest({"spec": other})
    assert identity_fields("train", 1, body, {"spec": other})["spec.global_batch"] == "8"
    assert key(spec=TrainSpec(num_workers=4, micro_batch=4)) != key(spec=one)
    pinned = [AlignSpec(num_workers=2), AlignSpec(num_workers=1, accumulation=2)]
    assert key(spec=pinned[0]) == key(spec=pinned[1])
    assert place_digest({"spec": pinned[0]}) != place_digest({"spec": pinned[1]})


def test_a_function_typed_at_a_prompt_counts_by_its_code_and_constants() -> None:
    def typed(source: str) -> Callable[..., Any]:
        space: dict[str, Any] = {}
        exec(source, space)
        return space["work"]

    digests = {
        code_digest(typed(source))
        for source in (
            "def work(): return 1",
            "def work(): return 2",
            "def work(): return (lambda: 3)()",
            "def work(): return (lambda: 4)()",
            "def work(): return len([])",
            "def work(): return max([])",
        )
    }
    assert len(digests) == 6
    assert code_digest(typed("def work(): return 1")) in digests
