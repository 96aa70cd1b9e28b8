"""Serve's declarative API: the applications that should run, sent whole, the same as `serve deploy` sends a file.

Serve gives code that it builds from an import path a version of its own, so a later change of `user_config` alone
restarts no replica; `serve.run` makes up a new version at each call, and restarts them. What runs is read back from
Serve before it is changed, so applications of other people stay. Rejected: `serve.run`, and a state file of our own
beside the cluster's. Two processes that change the applications at the same moment: the later one wins.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from llmray.errors import ConfigError, LLMRayError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Application = Mapping[str, Any]
"""One entry of `applications` in a Serve file."""


class DeploymentFailedError(LLMRayError):
    """An application did not start; the message has Serve's reason."""


class ServeControl:
    def __init__(self, dashboard_url: str) -> None:
        """Talk to the cluster's dashboard.

        Raises:
            UnavailableError: it does not answer.
        """
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        try:
            self._client = ServeSubmissionClient(dashboard_url)
        except (ConnectionError, RuntimeError) as error:
            raise UnavailableError(
                f"Ray's dashboard at {dashboard_url} does not answer, and Serve needs it: {error}"
            ) from error

    def applications(self) -> dict[str, dict[str, Any]]:
        """What should run now, as it was sent, by name."""
        details = self._client.get_serve_details()["applications"]
        return {
            name: app["deployed_app_config"]
            for name, app in details.items()
            if app["deployed_app_config"] and app["status"] != "DELETING"
        }

    def details(self) -> dict[str, Any]:
        """Everything that Serve says about itself."""
        return dict(self._client.get_serve_details())

    def replica_ids(self) -> dict[str, set[str]]:
        """Running replicas by application."""
        return {
            name: {
                replica["replica_id"]
                for deployment in app["deployments"].values()
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            }
            for name, app in self.details()["applications"].items()
        }

    def http_address(self) -> tuple[str, int] | None:
        """Where Serve listens; None if it does not run."""
        details = self.details()
        if not details.get("proxies"):
            return None
        return details["http_options"]["host"], details["http_options"]["port"]

    def apply(
        self, changes: Mapping[str, Application | None], *, host: str, port: int, everywhere: bool = False
    ) -> None:
        """Add or change applications, and take away those given as None.

        Args:
            everywhere: take requests on every node rather than on the head alone; counts when Serve starts.
        """
        target: dict[str, Application] = {**self.applications()}
        for name, change in changes.items():
            if change is None:
                target.pop(name, None)
            else:
                target[name] = change
        self._client.deploy_applications(
            {
                "proxy_location": "EveryNode" if everywhere else "HeadOnly",
                "http_options": {"host": host, "port": port},
                "applications": list(target.values()),
            }
        )

    def wait_running(self, names: Iterable[str], *, timeout_s: float) -> None:
        """Wait until applications run in their newest configuration.

        Raises:
            DeploymentFailedError: one of them did not start.
            UnavailableError: not within the time.
        """
        names = sorted(names)

        def running() -> bool:
            apps = self.details()["applications"]
            for name in names:
                app = apps.get(name, {"status": "NOT_STARTED", "deployments": {}})
                if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise DeploymentFailedError(f"{name} did not start: {_reason(app)}")
                healthy = all(deployment["status"] == "HEALTHY" for deployment in app["deployments"].values())
                if app["status"] != "RUNNING" or not healthy:
                    return False
            return True

        wait_for(running, timeout_s=timeout_s, what=f"{', '.join(names)} to run (does the cluster have the CPUs free?)")

    def wait_gone(self, names: Iterable[str], *, timeout_s: float) -> None:
        """Wait until applications have drained and are deleted."""
        gone = set(names)
        wait_for(
            lambda: not gone & set(self.details()["applications"]),
            timeout_s=timeout_s,
            what=f"{', '.join(sorted(gone))} to end",
        )


def wait_for(condition: Callable[[], T | None], *, timeout_s: float, what: str, poll_s: float = 0.1) -> T:
    """Ask again until it holds.

    Returns:
        The first answer that is true.

    Raises:
        UnavailableError: not within the time.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise UnavailableError(f"waited {timeout_s:g} s for {what}")
        time.sleep(poll_s)
    return answer


def check_port(host: str, port: int) -> None:
    """Make sure that Serve will be able to listen.

    Raises:
        ConfigError: this machine has no such address.
        UnavailableError: something else listens there.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"host ({host}) is no address: try 127.0.0.1") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise UnavailableError(
                f"port {port} of {host} cannot be taken ({error.strerror}): stop what listens there, or choose another "
                f"port (--port {port + 1})"
            ) from error


def _reason(app: Mapping[str, Any]) -> str:
    messages = [app.get("message", ""), *(deployment["message"] for deployment in app["deployments"].values())]
    text = next((message for message in reversed(messages) if message), "no reason given").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line.strip() for line in lines if "Error" in line and not line.startswith(" ")]
    return (errors or lines)[-1][:500]
