"""Where the shared cluster's dashboard answers."""

import logging

import pytest


@pytest.fixture
def dashboard(ray_cluster: None) -> str:
    import ray

    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    return f"http://{context.dashboard_url}"
