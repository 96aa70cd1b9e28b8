"""Keep one command alive no longer than whoever started it: a small process between the two.

Its standard input is a pipe that nobody writes to. It ends when the other side does, also by `kill -9`: then the command's
process group is told to end, and killed if it has not within `GRACE_S`. When the command ends by itself, this ends with
its exit code. Should this process be killed, the kernel kills the command. Rejected: `PR_SET_PDEATHSIG` set by the
engine itself (it fires when the *thread* that started the command ends, and a replica's constructor runs in one of a
pool), and an `atexit` hook (a killed replica runs none).

    python -m llmray.serve.supervisor COMMAND ARGUMENT…
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code, as a shell tells it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_me() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # One thread only, so the hook is safe here, and the parent thread lives as long as the process.
    child = subprocess.Popen(  # noqa: S603
        list(argv),
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=die_with_me,  # noqa: PLW1509
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the engine, which ends us
    ended = os.pidfd_open(child.pid)
    try:
        ready, _, _ = select.select([ended, sys.stdin], [], [])
        if ended not in ready:
            _signal(child.pid, signal.SIGTERM)
            select.select([ended], [], [], GRACE_S)
    finally:
        _signal(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
