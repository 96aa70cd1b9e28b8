"""What makes two calls of a step the same call: its code, its settings, the content of its inputs.

The cache key is the digest of a flat mapping from field to value, and the mapping is kept beside the key, so that
`llmray cache explain` can say field by field why a step ran again. Left out are fields that a config marks with
`metadata={"identity": False}` (worker counts, paths) and the machinery that runs steps. Code is the step's module and
every first-party module that it imports, found in the source, also inside functions. Rejected: hashing bytecode
(changes with the Python version) and hashing the whole package (a changed web page would retrain the model).
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llmray.artifact import Artifact
from llmray.digest import canonical_json, digest_bytes, digest_file, digest_of
from llmray.errors import ConfigError

MACHINERY = (
    "llmray.flow.identity",
    "llmray.flow.inputs",
    "llmray.flow.run",
    "llmray.flow.step",
    "llmray.registry",
    "llmray.cluster",
    "llmray.console",
    "llmray.options",
    "llmray.errors",
    "llmray.storage",
    "llmray.artifact",
)
"""Runs, stores and reports; a change here changes no step's result."""

_PACKAGE = Path(__file__).parents[1]
_LONGEST_LITERAL = 200


def identity_fields(
    name: str, version: int, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> dict[str, str]:
    """The flat mapping behind a step's cache key.

    Raises:
        ConfigError: an argument that has no stable identity.
    """
    fields = {"step": name, "version": str(version), "code": code_digest(function)}
    for argument, value in arguments.items():
        _flatten(argument, value, fields)
    return fields


def cache_key(fields: Mapping[str, str]) -> str:
    """Digest of the identity fields."""
    return digest_of(fields)


@cache
def code_digest(function: Callable[..., Any]) -> str:
    """Digest of the sources that a function's result can depend on: its module and its first-party imports."""
    path = Path(inspect.getsourcefile(function) or "")
    if not path.is_file():
        return digest_bytes(function.__code__.co_code)
    sources = {"": path}
    waiting = [path]
    while waiting:
        for module, found in _first_party_imports(waiting.pop(), root=path.parent):
            if module not in sources:
                sources[module] = found
                waiting.append(found)
    return digest_of({module: digest_file(source) for module, source in sources.items()})


def _first_party_imports(path: Path, *, root: Path) -> list[tuple[str, Path]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found += [(name, source) for name in names if (source := _source(name, root)) is not None]
    return found


def _source(module: str, root: Path) -> Path | None:
    if any(module == part or module.startswith(f"{part}.") for part in MACHINERY):
        return None
    # Looked up as files: asking the import system would import the module's parents, torch among them.
    base = _PACKAGE.parent if module.partition(".")[0] == _PACKAGE.name else root
    path = base.joinpath(*module.split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def _flatten(path: str, value: Any, fields: dict[str, str]) -> None:
    if isinstance(value, Artifact):
        fields[path] = value.digest
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.metadata.get("identity", True):
                _flatten(f"{path}.{field.name}", getattr(value, field.name), fields)
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key in sorted(value):
            _flatten(f"{path}.{key}", value[key], fields)
    elif isinstance(value, list | tuple) and any(dataclasses.is_dataclass(item) for item in value):
        for index, item in enumerate(value):
            _flatten(f"{path}.{index}", item, fields)
    elif callable(value):
        fields[path] = code_digest(value)
    else:
        try:
            text = canonical_json(value).decode()
        except TypeError as error:
            raise ConfigError(f"argument {path} cannot be part of a cache key: {error}") from error
        fields[path] = text if len(text) <= _LONGEST_LITERAL else digest_bytes(text.encode())
