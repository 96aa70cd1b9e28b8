"""Claim: on real questions the monitor's false alarms are as rare as was asked for, and drift is found within requests.

Null data: the questions of a curated snapshot of the Python documentation (or of any snapshot), parted anew for each
repetition into reference, calibration and stream, without replacement: resampling a reference would hide what a finite
one costs. Drift: GSM8K questions and lines of Shakespeare, mixed into usual traffic at several rates.

    python benchmarks/monitor_arl.py SNAPSHOT_URI $LLMRAY_DATA
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from llmray.monitor.detector import Detector
from llmray.monitor.features import Nonconformity
from llmray.monitor.reference import usual_messages

REFERENCE, CALIBRATION = 300, 300


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", help="folder of a dataset snapshot")
    parser.add_argument("data", type=Path, help="folder with gsm8k_train.jsonl and tinyshakespeare.txt")
    parser.add_argument("--repetitions", type=int, default=200)
    args = parser.parse_args(argv)
    reference, fresh = usual_messages(args.snapshot, split="train", limit=10_000)
    usual = reference + fresh
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, {len(usual):,} usual questions")
    print(f"reference {REFERENCE}, calibration {CALIBRATION}, {args.repetitions} repetitions\n")
    _false_alarms(usual, args.repetitions)
    _delays(usual, args.data, min(args.repetitions, 100))
    return 0


def _false_alarms(usual: list[str], repetitions: int) -> None:
    print("wanted ARL   mean run length (censored at the end of the stream)   alarms in the first n (bound n / ARL)")
    for wanted in (100, 300, 1000):
        generator = np.random.default_rng(0)
        lengths, censored = [], 0
        for _ in range(repetitions):
            detector, stream = _parted(usual, generator, wanted)
            verdict = detector.update(stream, generator.random((len(stream), 2)).tolist())
            censored += verdict.state == "quiet"
            lengths.append(verdict.n)
        early = sum(length <= wanted // 10 for length in lengths) / repetitions
        mean = statistics.mean(lengths)
        print(
            f"{wanted:10,}   at least {mean:,.0f} ({censored} of {repetitions} reached {len(stream):,})   {early:.3f} (0.1)"
        )


def _delays(usual: list[str], data: Path, repetitions: int) -> None:
    lines = (data / "gsm8k_train.jsonl").read_text().splitlines()[:600]
    kinds = {
        "gsm8k": [json.loads(line)["question"] for line in lines],
        "Shakespeare": [line for line in (data / "tinyshakespeare.txt").read_text().splitlines() if len(line) > 30][
            :600
        ],
    }
    print("\nrequests from the change to the alarm at ARL 10,000, after 200 usual ones: median (90th percentile)")
    print("share of drift   " + "   ".join(f"{kind:>12}" for kind in kinds))
    for share in (1.0, 0.5, 0.2):
        cells = []
        for texts in kinds.values():
            generator = np.random.default_rng(1)
            delays = [_delay(usual, texts, share, generator) for _ in range(repetitions)]
            cells.append(f"{np.median(delays):6.0f} ({np.quantile(delays, 0.9):.0f})")
        print(f"{share:14.0%}   " + "   ".join(f"{cell:>12}" for cell in cells))
    score = Nonconformity(usual[:REFERENCE])
    begun = time.perf_counter()
    score.scores(usual[:1000])
    print(f"\nscoring: {1000 * (time.perf_counter() - begun) / len(usual[:1000]):.2f} ms a message")


def _delay(usual: list[str], strange: list[str], share: float, generator: np.random.Generator) -> int:
    order = generator.permutation(len(usual))
    score = Nonconformity([usual[i] for i in order[:REFERENCE]])
    calibration = score.scores([usual[i] for i in order[REFERENCE : REFERENCE + CALIBRATION]])
    rest = [usual[i] for i in order[REFERENCE + CALIBRATION :][:600]]
    detector = Detector(calibration, average_run_length=10_000)
    detector.update(score.scores(rest[:200]), generator.random((200, 2)).tolist())
    before = detector.verdict().n
    mixed = [strange[generator.integers(len(strange))] if generator.random() < share else text for text in rest[200:]]
    return detector.update(score.scores(mixed), generator.random((len(mixed), 2)).tolist()).n - before


def _parted(usual: list[str], generator: np.random.Generator, wanted: float) -> tuple[Detector, list[float]]:
    order = generator.permutation(len(usual))
    score = Nonconformity([usual[i] for i in order[:REFERENCE]])
    scores = score.scores([usual[i] for i in order[REFERENCE:]])
    return Detector(scores[:CALIBRATION], average_run_length=wanted, max_scores=2000), scores[CALIBRATION:]


if __name__ == "__main__":
    raise SystemExit(main())
