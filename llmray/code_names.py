"""Code by name: `module:attribute`, as configs and command lines write it."""

import importlib
from typing import Any

from llmray.errors import ConfigError


def is_code_name(name: str) -> bool:
    """Whether it is one; a built-in's name, a path or `s3://bucket/model` is none."""
    module, _, attribute = name.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_named(name: str, option: str) -> Any:
    """What `module:attribute` names.

    Args:
        option: where the user wrote it, for the error.

    Raises:
        ConfigError: it is not there.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{option}: {name} cannot be loaded: {error}") from error
