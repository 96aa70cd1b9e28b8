"""Join the Ray cluster that `RAY_ADDRESS` names, or start a local one for as long as this process lives.

Job scripts call `connect()` and nothing else, so the same script runs directly and through `ray job submit` (which sets
`RAY_ADDRESS` in the driver; a key set both by the job and here would make `ray.init` raise).
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmray.errors import ConfigError, UnavailableError

log = logging.getLogger(__name__)

WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
"""Set before a local cluster starts, so that its workers inherit them: one thread a worker (two OpenMP teams on two
busy cores collapse), Train polls five times a second, nothing reports home."""


LOCAL_ENV = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_worker_maximum_startup_concurrency": "16",
}
"""Besides, where the cluster is this machine alone: nobody takes it away from us, so no process need watch for that, and
more workers than cores (drivers and controllers that only wait) are no reason for a warning."""

_DASHBOARD = "RAY_API_SERVER_ADDRESS"


def connect(*, num_cpus: int | None = None) -> None:
    """Make sure that this process talks to a Ray cluster; a second call does nothing.

    Args:
        num_cpus: cores that a local cluster offers; None for all of this machine.

    Raises:
        UnavailableError: `RAY_ADDRESS` names a cluster that does not answer.
        ConfigError: `RAY_ADDRESS` names a dashboard or a Ray client server, which take no drivers.
    """
    address = None if is_ours() else os.environ["RAY_ADDRESS"]
    for name, value in {**WORKER_ENV, **({} if address else LOCAL_ENV)}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _check_answers(address)
            ray.init(address, log_to_driver=True, logging_level=logging.ERROR)
            log.info("joined the Ray cluster at %s", address)
        else:
            _start(num_cpus)
            log.info("started a local Ray cluster with %g cores", ray.cluster_resources().get("CPU", 0))
    except (ConnectionError, TimeoutError, RuntimeError, OSError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray cluster"
        raise UnavailableError(f"{where} cannot be reached: {error}; start it, or unset RAY_ADDRESS") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints the stack of a crash


def _start(num_cpus: int | None) -> None:
    """Start a local cluster whose processes know its dashboard.

    Tune's early stops hand their placement groups back only while a dashboard runs, and Train's clean-up asks it whether
    the controller is alive. Without an address they look for a cluster on this machine: where there are two, or one that
    crashed has left its address behind, they ask the wrong one, and every training ends twelve seconds late.
    """
    import ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = os.environ.get(_DASHBOARD)
    os.environ[_DASHBOARD] = f"http://127.0.0.1:{port}"
    try:
        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_port=port,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        del os.environ[_DASHBOARD]  # what this process submits goes where it went before
        if before is not None:
            os.environ[_DASHBOARD] = before


def _check_answers(address: str) -> None:
    """Fail in seconds where nothing listens: `ray.init` would try for two minutes."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS ({address}) is a dashboard: send the job there with `ray job submit`, or set RAY_ADDRESS to "
            f"host:6379 on a node of the cluster"
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS ({address}) is a Ray client server, which ends a job with its connection: send the job to the "
            f"dashboard with `ray job submit`, or set RAY_ADDRESS to host:6379 on a node of the cluster"
        )
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def is_ours() -> bool:
    """Whether the cluster ends with this process: a local one that `connect` started."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def stay() -> None:
    """Keep this process, and with it a cluster of its own, until somebody interrupts it.

    Raises:
        KeyboardInterrupt: somebody did.
    """
    threading.Event().wait()


@contextmanager
def connected() -> Iterator[None]:
    """A connection for the length of a block; what was there before stays."""
    import ray

    ours = not ray.is_initialized()
    connect()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
