"""One way to turn a config dataclass into flags, YAML and help: jsonargparse, asked in one place.

`--config file.yaml` and `--train.lr 1e-4` fill the same frozen dataclass; the one-line docstring under each field is
its help text. Rejected: tyro (no layered YAML files), Hydra (its own working folders and a second config language).
"""

import argparse
import dataclasses
import json
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from llmray.errors import ConfigError, LLMRayError, UserError

Config = TypeVar("Config")

_LONGEST_COMPLAINT = 400


def parse(config_type: type[Config], argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Read flags and `--config` files into a config.

    Args:
        config_type: a dataclass; nested dataclasses become dotted flags.
        argv: arguments without the program's name; None for the process's own.

    Raises:
        ConfigError: an option that is unknown or impossible.
        SystemExit: 0 after `--help`.
    """
    from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """The description with its line breaks, so that commands in it can be copied."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = "%(prog)s [--config FILE] [--OPTION VALUE ...]"
    parser = ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        exit_on_error=False,
        formatter_class=_Help,
    )
    parser.add_argument("--config", action="config", help="YAML file with these options; later flags win")
    _add_fields(parser, config_type, prefix=None)
    arguments = _gather_lists(list(sys.argv[1:] if argv is None else argv), config_type)
    try:
        values = parser.parse_args(arguments).as_dict()
    except (ArgumentError, OSError) as error:
        raise ConfigError(f"{_shortened(error)} (see {prog} --help)") from error
    return typing.cast("Config", _build(config_type, values))


def changed(config: Any) -> dict[str, Any]:
    """The options of a flat config that differ from its defaults."""
    default = type(config)()
    names = [field.name for field in dataclasses.fields(config) if field.name not in _flagless(type(config))]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}


def run_job(
    job: Callable[[Config], None], config_type: type[Config], argv: Sequence[str] | None, *, prog: str, description: str
) -> int:
    """Parse, run, and turn an error into one line on standard error and its exit code."""
    from llmray import console

    console.setup()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what `ray job stop` sends: end as after Ctrl-C
    try:
        job(parse(config_type, argv, prog=prog, description=description))
    except LLMRayError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command goes on from the last finished step", file=sys.stderr)
        return 130
    return 0


def _add_fields(parser: Any, config_type: type, *, prefix: str | None) -> None:
    nested = _nested(config_type)
    parser.add_class_arguments(config_type, prefix, skip={*nested, *_flagless(config_type)})
    for name, inner in nested.items():
        dotted = f"{prefix}.{name}" if prefix else name
        _add_fields(parser, inner, prefix=dotted)
        parser.set_defaults({f"{dotted}.{key}": value for key, value in _preset(config_type, name).items()})


def _preset(config_type: type, name: str) -> dict[str, Any]:
    """What a nested config's default sets differently from its own defaults."""
    field = next(field for field in dataclasses.fields(config_type) if field.name == name)
    if field.default_factory is dataclasses.MISSING:
        return {}
    default = field.default_factory()
    return {
        inner.name: getattr(default, inner.name)
        for inner in dataclasses.fields(default)
        if not dataclasses.is_dataclass(getattr(default, inner.name)) and inner.metadata.get("flag", True)
    }


def _build(config_type: type, values: dict[str, Any]) -> Any:
    nested = _nested(config_type)
    tables = _tables(config_type)
    arguments = {
        field.name: _build(nested[field.name], values[field.name])
        if field.name in nested
        else {key: _entry(tables[field.name], value) for key, value in values[field.name].items()}
        if field.name in tables
        else _tuple_if_asked(values[field.name], field.default)
        for field in dataclasses.fields(config_type)
        if field.name not in _flagless(config_type)
    }
    try:
        return config_type(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _entry(entry_type: type, value: Any) -> Any:
    return value if isinstance(value, entry_type) else _build(entry_type, value)


def _flagless(config_type: type) -> set[str]:
    """Fields marked `metadata={"flag": False}`: filled in by code, not by people."""
    return {field.name for field in dataclasses.fields(config_type) if not field.metadata.get("flag", True)}


def _tuple_if_asked(value: Any, default: Any) -> Any:
    return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value


def _nested(config_type: type) -> dict[str, type]:
    hints = typing.get_type_hints(config_type)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(config_type)
        if dataclasses.is_dataclass(hints[field.name])
    }


def _tables(config_type: type) -> dict[str, type]:
    """Fields that map names to dataclasses, and which dataclass."""
    hints = typing.get_type_hints(config_type)
    return {
        name: typing.get_args(hint)[1]
        for name, hint in hints.items()
        if typing.get_origin(hint) is Mapping and dataclasses.is_dataclass(typing.get_args(hint)[1])
    }


def _gather_lists(arguments: list[str], config_type: type) -> list[str]:
    """Let a list option take several words, as in `--sources a.jsonl b.parquet`, and a switch take none."""
    lists, switches = (
        {f"--{name}" for name in _names(config_type, test)}
        for test in (_is_list, lambda hint: hint in (bool, bool | None))
    )
    gathered: list[str] = []
    at = 0
    while at < len(arguments):
        flag, equals, value = arguments[at].partition("=")
        at += 1
        if flag not in lists | switches:
            gathered.append(flag + equals + value)
            continue
        words = [value] if equals else []
        while not equals and at < len(arguments) and not arguments[at].startswith("--"):
            words.append(arguments[at])
            at += 1
            if flag in switches:
                break
        gathered.append(flag)
        if flag in switches:
            gathered += words or ["true"]
        else:
            gathered.append(words[0] if len(words) == 1 and _writes_list(words[0]) else json.dumps(words))
    return gathered


def _writes_list(word: str) -> bool:
    """Whether a word is a list as YAML writes it; `[ab]*.jsonl` is none."""
    try:
        return word.startswith("[") and isinstance(yaml.safe_load(word), list)
    except yaml.YAMLError:
        return False


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in (list, tuple)


def _names(config_type: type, test: Callable[[Any], bool], prefix: str = "") -> list[str]:
    """Dotted names of the fields whose type passes a test."""
    names = [prefix + name for name, hint in typing.get_type_hints(config_type).items() if test(hint)]
    for name, inner in _nested(config_type).items():
        names += _names(inner, test, f"{prefix}{name}.")
    return names


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_COMPLAINT]
