"""A server as a process of ours: started, waited for, watched, ended; never restarted in silence.

What it prints goes to our log. It counts as dead when its process ends or when it fails three health checks in a row, and
then `dead` says why; replacing it is the business of whoever owns the replica. Rejected: restarting it here, under an engine
that goes on saying it is well.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence

from llmray.errors import UnavailableError
from llmray.serve.supervisor import GRACE_S

logger = logging.getLogger(__name__)

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""No proxy stands before a process of ours, whatever the environment says."""
_FAILURES = 3
_POLL_S = 0.1


class ChildServer:
    """One running server on a free port of this machine."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        health: str,
        start_timeout_s: float,
        health_every_s: float,
    ) -> None:
        """Start and wait until it answers `health` with 2xx.

        Args:
            command: `{port}` in it stands for the port.
            env: added to this process's environment.

        Raises:
            UnavailableError: it ended, or does not answer within `start_timeout_s`; holds what it said last.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.dead: str | None = None
        """Why it answers no more; None while it lives."""
        self._health_url = self.url + health
        self._said: deque[str] = deque(maxlen=30)
        words = [word.replace("{port}", str(port)) for word in command]
        self._process = subprocess.Popen(  # noqa: S603 (the command is the operator's)
            [sys.executable, "-m", "llmray.serve.supervisor", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            text=True,
            errors="replace",
        )
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()
        self._await_ready(start_timeout_s)
        self._watcher = threading.Thread(target=self._watch, args=(health_every_s,), name="server-watch", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End it and all that it started."""
        self._stop.set()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=GRACE_S + 5)
        self._reader.join(timeout=5)
        self.dead = self.dead or "it was closed"

    def _await_ready(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while not self._healthy():
            if self._process.poll() is not None:
                self._reader.join(timeout=5)
                raise UnavailableError(f"the server ended with {self._process.returncode} at its start: {self._tail()}")
            if time.monotonic() > until:
                self.close()
                raise UnavailableError(f"the server does not answer after {timeout_s:.0f} s: {self._tail()}")
            self._stop.wait(_POLL_S)

    def _watch(self, every_s: float) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                code = self._process.wait(timeout=every_s)
            except subprocess.TimeoutExpired:
                failures = 0 if self._healthy() else failures + 1
                if failures < _FAILURES:
                    continue
                self.dead = f"it failed {failures} health checks in a row"
                self._process.stdin.close()  # type: ignore[union-attr]
            else:
                self.dead = f"it ended with {code}"
            if not self._stop.is_set():
                logger.error("the server is gone: %s: %s", self.dead, self._tail())
            return

    def _healthy(self) -> bool:
        try:
            with _DIRECT.open(self._health_url, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line)
            logger.info("server: %s", line.rstrip())

    def _tail(self) -> str:
        return "".join(self._said).strip()[-2000:]
