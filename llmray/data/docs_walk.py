"""Walk the standard library of the running Python and print one JSON line an object: a script for a process of its own.

Importing every module has side effects (a browser, a window, a registered codec), so nothing of llmray is imported here
and `python_docs` runs this file as a subprocess. What is listed is what a reader of the library reference could name:
modules, and the public functions, classes, methods and properties that they offer, under every name they offer them.
Rejected: `pydoc` (it renders pages), and walking `gc` (private objects, no names).
"""

import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_SKIPPED = {"antigravity", "this", "idlelib", "turtledemo", "lib2to3", "test", "__main__", "__phello__", "nt"}
_SKIPPED_PARTS = {"test", "tests", "__main__", "_bundled", "idle_test"}
_BETTER_KNOWN = {"posix": "os", "nt": "os", "xml.etree.cElementTree": "xml.etree.ElementTree"}
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def main() -> None:
    """Print a line `{"name", "module", "qualname", "kind", "doc"}` for each object and a last line with the counts."""
    out = sys.stdout
    modules: dict[str, ModuleType] = {}
    failed: list[str] = []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name in module_names():
            module = _import(name)
            if module is None:
                failed.append(name)
            else:
                modules[name] = module
    num_objects = 0
    for name in sorted(modules):
        for entry in objects_of(name, modules[name]):
            out.write(json.dumps(entry) + "\n")
            num_objects += 1
    out.write(json.dumps({"modules": len(modules), "failed": failed, "objects": num_objects}) + "\n")
    out.flush()
    os._exit(0)  # Threads and exit handlers of what was imported are none of our business.


def module_names() -> list[str]:
    """Names of the public modules, sorted; a package's modules are found by importing it."""
    names: set[str] = set()
    for top in sorted(sys.stdlib_module_names):
        if top in _SKIPPED or top.startswith("_"):
            continue
        names.add(top)
        module = _import(top)
        for path_entry in pkgutil.walk_packages(getattr(module, "__path__", []), f"{top}.", onerror=lambda _: None):
            parts = path_entry.name.split(".")
            if not any(part in _SKIPPED_PARTS or part.startswith("_") for part in parts):
                names.add(path_entry.name)
    return sorted(names)


def objects_of(name: str, module: ModuleType) -> Iterator[dict[str, str]]:
    """The module itself, then everything public in it, each under the name by which it is reached."""
    yield _entry(name, name, "", "module", module)
    for key, value in _public(module):
        if isinstance(value, ModuleType):
            # `os.path` is a module under a second name; its functions are what people look up.
            for inner, thing in _public(value):
                yield from _walk(f"{name}.{key}.{inner}", value.__name__, inner, thing)
        else:
            yield from _walk(f"{name}.{key}", _home(value, name), key, value)


def _walk(path: str, module: str, qualname: str, value: Any, depth: int = 0) -> Iterator[dict[str, str]]:
    if inspect.isclass(value):
        yield _entry(path, module, qualname, "class", value)
        if depth < 2:
            for key, member in sorted(vars(value).items()):
                if key.startswith("_") and not (key.startswith("__") and key.endswith("__") and callable(member)):
                    continue
                if key == "__class__":
                    continue
                # Asking the class, not its __dict__, unwraps descriptors and lets getdoc inherit a docstring.
                found = inspect.getattr_static(value, key) if inspect.isdatadescriptor(member) else _get(value, key)
                if found is not None:
                    yield from _walk(f"{path}.{key}", module, f"{qualname}.{key}", found, depth + 1)
    elif inspect.isroutine(value):
        yield _entry(path, module, qualname, "method" if depth else "function", value)
    elif depth and inspect.isdatadescriptor(value):
        yield _entry(path, module, qualname, "property", value)


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    listed = getattr(module, "__all__", None)
    for key in sorted(set(listed) if listed is not None else vars(module)):
        value = getattr(module, key, None)
        if listed is None:
            own = getattr(value, "__module__", None)
            foreign = isinstance(own, str) and own != module.__name__ and not own.startswith("_")
            if key.startswith("_") or isinstance(value, ModuleType) or foreign:
                continue
        if inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, ModuleType):
            yield key, value


def _home(value: Any, reached: str) -> str:
    """The public module that a reader would say defines it."""
    own = getattr(value, "__module__", None)
    if not isinstance(own, str) or any(part.startswith("_") for part in own.split(".")):
        return reached
    if own in _BETTER_KNOWN:
        return _BETTER_KNOWN[own]
    return own if own in sys.modules and own != "builtins" else reached


def _entry(path: str, module: str, qualname: str, kind: str, value: Any) -> dict[str, str]:
    try:
        doc = inspect.getdoc(value)
    except Exception:
        doc = None
    doc = _ADDRESS.sub("at 0x0", doc) if isinstance(doc, str) else ""
    return {"name": path, "module": module, "qualname": qualname, "kind": kind, "doc": doc}


def _get(value: Any, key: str) -> Any:
    try:
        return getattr(value, key)
    except Exception:
        return None


def _import(name: str) -> ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (Exception, SystemExit):
        return None


if __name__ == "__main__":
    main()
