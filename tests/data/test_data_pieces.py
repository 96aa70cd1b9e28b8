"""Pieces of work: chunks of files, the work folder, its lock, its name, and how progress is told."""

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson
import pytest
from pure_curation import run_stages

from llmray.data import buckets
from llmray.data.config import CurateConfig, Dedup
from llmray.data.contamination import Contamination
from llmray.data.neighbours import EmbeddingOutliers
from llmray.data.progress import EVERY_S, Progress, counting, rows_in_hand
from llmray.data.semantic import Semantic
from llmray.data.stages import near_verdicts
from llmray.data.work import Work, locked, other_files, work_key
from llmray.errors import ConfigError


def test_a_piece_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    work = Work(uri=str(tmp_path / "work"))

    def half() -> None:
        with work.piece("one") as piece:
            (piece.folder / "data").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not work.has("one")
    for said in ("first", "second"):
        with work.piece("one") as piece:
            (piece.folder / "data").write_text(said)
            piece.finish(said=said)
    assert work.facts("one") == {"said": "first"}
    assert (work.path("one") / "data").read_text() == "first"
    work.remove()
    assert not work.has("one")


def test_a_second_run_waits_for_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = str(tmp_path / "work")
    held, order = threading.Event(), []
    code = (
        "import sys\nfrom llmray.data.work import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n    print('done', flush=True)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"

    def second() -> None:
        with locked(uri):
            order.append("second")
        held.set()

    with caplog.at_level("INFO", "llmray"):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not held.wait(0.05)
        said, _ = other.communicate("")
        order.insert(0, said.strip())
        waiting.join()
    assert order == ["done", "second"]
    assert "another run" in caplog.text
    assert not (tmp_path / "work.lock").exists()


def test_the_work_is_named_by_what_decides() -> None:
    config = CurateConfig()
    sources = [("a.jsonl", "/raw/a.jsonl", "10:5")]
    one = work_key(config, sources, onto=None)
    assert work_key(CurateConfig(), list(sources), onto=None) == one
    assert work_key(replace(config, seed=1), sources, onto=None) != one
    assert work_key(config, [("a.jsonl", "/raw/a.jsonl", "10:6")], onto=None) != one
    assert work_key(config, sources, onto="f" * 64) != one


def test_models_and_evaluation_sets_are_files_that_decide(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    (tmp_path / "eval.jsonl").write_text("{}")
    model = str(tmp_path / "model")
    config = CurateConfig(
        semantic=Semantic(embedding=model),
        embedding_outlier=EmbeddingOutliers(embedding=model),
        contamination=Contamination(sets=(f"mine={tmp_path}/eval.jsonl",)),
    )
    files = [str(tmp_path / "eval.jsonl"), f"{model}/config.json", f"{model}/model.safetensors"]
    assert other_files(config) == files
    assert other_files(replace(config, second_look=("embedding_outlier",))) == [*files, *files[1:]]
    assert other_files(CurateConfig(semantic=Semantic(embedding="my_model:embed"))) == []


def test_code_of_ones_own_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_quality.py").write_text("def rate(row):\n    return 1.0\n")
    config = CurateConfig(quality="own_quality:rate")
    one = work_key(config, [])
    (tmp_path / "own_quality.py").write_text("def rate(row):\n    return 2.0\n")
    assert work_key(config, []) != one


def test_verdicts_of_many_batches_keep_no_file_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(buckets, "deal", partial(buckets.deal, characters=1))
    rows = [{"text": " ".join(f"w{at % 40}{word}" for word in range(30))} for at in range(80)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    config = CurateConfig(dedup=Dedup(exact=False))
    with run_stages([str(tmp_path / "a.jsonl")], config) as (job, settled):
        assert settled["report"]["repeats"]["near"] == 40
        before = len(list(Path("/dev/fd").iterdir()))
        _, verdicts, _ = near_verdicts(job)
        assert len(verdicts) == 40
        assert len(list(Path("/dev/fd").iterdir())) < before + 20


def test_progress_is_told_now_and_then() -> None:
    now, told = [0.0], list[str]()
    progress = Progress("prepare", 1000, tell=told.append, clock=lambda: now[0])
    progress.add(100, 50)
    assert told == []
    now[0] = EVERY_S * 5
    progress.add(150, 50)
    assert told == ["curate: prepare 25%, 100 rows, 10 rows/s, 0:10 so far, 0:30 left"]
    progress.add(250)
    assert len(told) == 1
    now[0] = EVERY_S * 10
    progress.add(500)
    assert len(told) == 1  # what is done needs no time left


def test_progress_is_told_while_nothing_is_done(tmp_path: Path) -> None:
    now, told, heard = [0.0], list[str](), threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        heard.set()

    counts = tmp_path / "work" / ".counts"
    progress = Progress("prepare", 7, in_hand=lambda: rows_in_hand(counts), tell=tell, clock=lambda: now[0])
    with counting(counts, "chunks/000001", clock=lambda: now[0]) as one, counting(counts, "chunks/000002") as other:
        one(4000)
        other(10)
        assert not counts.exists()  # a piece that is soon done need write nothing
        now[0] = EVERY_S
        one(9000)
        progress.tick()
        now[0] = 90.0
        one(18_000)
        with progress.ticking():
            heard.clear()
            assert heard.wait(60)
    assert told == [
        "curate: prepare 0%, 9,000 rows, 4,500 rows/s, 0:02 so far",
        "curate: prepare 0%, 18,000 rows, 200 rows/s, 1:30 so far",
    ]
    assert rows_in_hand(counts) == 0
    assert list(counts.iterdir()) == []
    with counting(None, "chunks/000003", clock=lambda: now[0]) as nobody:
        now[0] += EVERY_S
        nobody(1)
    assert rows_in_hand(None) == 0


def test_what_a_worker_says_is_said_again_without_a_traceback() -> None:
    from ray.exceptions import RayTaskError, UserCodeException

    from llmray.data.tasks import in_our_words

    def raised(cause: Exception) -> Exception:
        failed = RayTaskError("f", "a traceback", cause, proctitle="ray::f", pid=1, ip="127.0.0.1")
        return failed.as_instanceof_cause()

    said = ConfigError("mend this")
    assert isinstance(raised(said), ConfigError)
    assert in_our_words(raised(said)) is said
    assert in_our_words(said) is said
    wrapped = UserCodeException("the function failed")
    wrapped.__cause__ = said
    assert in_our_words(raised(wrapped)) is said
    assert in_our_words(raised(KeyError("no words of ours"))) is None
