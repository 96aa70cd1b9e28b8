"""What makes two calls of a step the same call: its code, its settings, the content of its inputs.

The cache key is the digest of a flat mapping from field to value, and the mapping is kept beside the key, so that
`llmray cache explain` can say field by field why a step ran again. Left out are fields that a config marks with
`metadata={"identity": False}` (worker counts, paths; of those that say what they count as, that counts: factors of a
global batch as the batch) and the machinery that runs steps. Code is the step's module and
every first-party module that it imports, found in the source, also inside functions. Where a field is marked
`metadata={"code": True}`, each `module:attribute` in it counts with its code as well. Rejected: hashing bytecode
(changes with the Python version) and hashing the whole package (a changed web page would retrain the model).
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from llmray.artifact import Artifact
from llmray.code_names import is_code_name
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
    "llmray.prices",
)
"""Runs, stores and reports; a change here changes no step's result."""

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = ("site-packages", "dist-packages")
_LONGEST_LITERAL = 200
RESERVED = frozenset({"step", "version", "code"})
"""Fields of every key, beside those of the arguments."""


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


def place_digest(arguments: Mapping[str, Any]) -> str:
    """Twelve digits that differ where calls of one key differ in what the key leaves out: workers, paths.

    Fields marked `metadata={"bound": False}` make no difference: work begun with one value goes on with another.
    """
    return digest_of([*_places("", arguments)])[:12]


def _places(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Artifact):
        yield path, value.uri
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if not field.metadata.get("identity", True) and field.metadata.get("bound", True):
                yield f"{path}.{field.name}", repr(inner)
            yield from _places(f"{path}.{field.name}", inner)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _places(f"{path}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _places(f"{path}.{index}", item)


@cache
def code_digest(function: Callable[..., Any]) -> str:
    """Digest of the sources that a function's result can depend on: its module and its first-party imports."""
    path = Path(inspect.getsourcefile(function) or "")
    if not path.is_file():  # typed at a prompt
        return digest_of(_bytecode(function.__code__))
    return _sources_digest(path, function.__module__)


def _sources_digest(path: Path, name: str) -> str:
    root = _import_root(path, name)
    sources = {"": path}
    waiting = [path]
    while waiting:
        for module, found in _first_party_imports(waiting.pop(), root=root, package=path.relative_to(root).parts[0]):
            if module not in sources:
                sources[module] = found
                waiting.append(found)
    return digest_of({module: digest_file(source) for module, source in sources.items()})


def _named_code(path: str, name: str) -> str:
    """Digest of the sources behind `module:attribute`."""
    module = name.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}: {name} cannot be found: {error}") from error
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise ConfigError(f"{path}: {name} cannot be found: there is no module {module}")
    return _sources_digest(Path(found.origin), module)


def _import_root(path: Path, module: str) -> Path:
    """The folder that a user's first-party imports start from: above the package that a module belongs to."""
    if module.rpartition(".")[2] == path.stem:
        return path.parents[module.count(".")]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _first_party_imports(path: Path, *, root: Path, package: str) -> list[tuple[str, Path]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join([*_parents(path, node.level, root), *filter(None, [node.module])])
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        found += [(name, source) for name in names if name and (source := _source(name, root, package)) is not None]
    return found


def _parents(path: Path, level: int, root: Path) -> tuple[str, ...]:
    """The names of the package that a relative import of this level starts from."""
    if not level:
        return ()
    folder = path.parents[level - 1]
    base = _PACKAGE.parent if folder.is_relative_to(_PACKAGE) else root
    return folder.relative_to(base).parts if folder.is_relative_to(base) else ()


def _source(module: str, root: Path, package: str) -> Path | None:
    if any(module == part or module.startswith(f"{part}.") for part in MACHINERY):
        return None
    top = module.partition(".")[0]
    ours = top == _PACKAGE.name
    if module == _PACKAGE.name:
        return None  # our front door leads everywhere
    if not ours and root.name in _INSTALLED and top != package:
        return None  # somebody else's package, beside the user's
    # Looked up as files: asking the import system would import the module's parents, torch among them.
    path = (_PACKAGE.parent if ours else root).joinpath(*module.split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def _function(path: str, value: Callable[..., Any]) -> str:
    """Which function of its module it is, and the sources that it can depend on."""
    if not inspect.isfunction(value) or value.__closure__ is not None:
        raise ConfigError(
            f"argument {path} cannot be part of a cache key: of callables only a function of a module can; "
            f"pass what a closure or an object holds as arguments of their own"
        )
    return digest_of([value.__qualname__, _bytecode(value.__code__), code_digest(value)])


def _bytecode(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), code.co_names, [_constant(item) for item in code.co_consts]]


def _constant(item: Any) -> Any:
    if isinstance(item, CodeType):
        return _bytecode(item)
    # A set has no order of its own: that of its texts would be the hash seed's.
    if isinstance(item, frozenset):
        return ["set", *sorted(repr(one) for one in item)]
    return [_constant(one) for one in item] if isinstance(item, tuple) else repr(item)


def _flatten(path: str, value: Any, fields: dict[str, str]) -> None:
    if isinstance(value, Artifact):
        fields[path] = value.digest
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            counted = field.name if field.metadata.get("identity", True) else field.metadata.get("counts_as")
            if counted is not None:
                _flatten(f"{path}.{counted}", getattr(value, counted), fields)
            if field.metadata.get("code"):
                _add_code(f"{path}.{field.name}", getattr(value, field.name), fields)
    elif isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        for key in sorted(value):
            _flatten(f"{path}.{key if key.isidentifier() else json.dumps(key)}", value[key], fields)
    elif isinstance(value, list | tuple) and _holds_values(value):
        for index, item in enumerate(value):
            _flatten(f"{path}.{index}", item, fields)
    elif callable(value):
        fields[path] = _function(path, value)
    else:
        try:
            text = canonical_json(value).decode()
        except TypeError as error:
            raise ConfigError(f"argument {path} cannot be part of a cache key: {error}") from error
        fields[path] = text if len(text) <= _LONGEST_LITERAL else digest_bytes(text.encode())


def _holds_values(value: Any) -> bool:
    """Whether there is something in it, at any depth, that is more than JSON."""
    if isinstance(value, Mapping):
        return True
    if isinstance(value, list | tuple):
        return any(_holds_values(item) for item in value)
    return dataclasses.is_dataclass(value) or callable(value)


def _add_code(path: str, value: str | Sequence[str] | None, fields: dict[str, str]) -> None:
    """The sources of each `module:attribute`; what is no such name (a folder, `s3://bucket/model`) names no code."""
    for name in [value] if isinstance(value, str) else value or ():
        if is_code_name(name):
            fields[f"{path}({name})"] = _named_code(path, name)
