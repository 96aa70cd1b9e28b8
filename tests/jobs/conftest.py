"""One small life, killed in the middle and finished, that every test of the jobs looks at."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from small_life import Life, free_port, make_raw


@dataclass(frozen=True, kw_only=True)
class Lived:
    """What happened to a small life."""

    life: Life
    first: str
    """What the first call said before it was killed."""
    second: "object"
    """The call that finished it."""


@pytest.fixture(scope="package")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """The lifecycle's driver killed while the model is fine-tuned, then called again."""
    folder = tmp_path_factory.mktemp("life")
    home = folder / "home"
    home.mkdir()
    life = Life(home=home, raw=make_raw(folder / "raw"), port=free_port())
    first = life.run_and_kill("jobs/lifecycle.py", life.arguments, at="train      starts")
    yield Lived(life=life, first=first, second=life.run("jobs/lifecycle.py", *life.arguments))
