"""One way to turn a config dataclass into flags, YAML and help: jsonargparse, asked in one place.

`--config file.yaml` and `--train.lr 1e-4` fill the same frozen dataclass; the one-line docstring under each field is its
help text. Rejected: tyro (no layered YAML files), Hydra (its own working folders and a second config language).
"""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmray.errors import ConfigError, LLMRayError

Config = TypeVar("Config")


def parse(config_type: type[Config], argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Read flags and `--config` files into a config.

    Args:
        config_type: a dataclass; nested dataclasses become dotted flags.
        argv: arguments without the program's name; None for the process's own.

    Raises:
        ConfigError: an option that is unknown or impossible.
        SystemExit: 0 after `--help`.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with these options; later flags win")
    parser.add_class_arguments(config_type, as_group=False)
    try:
        namespace = parser.parse_args(None if argv is None else list(argv))
        namespace.pop("config", None)
        return config_type(**parser.instantiate_classes(namespace).as_dict())
    except ArgumentError as error:
        raise ConfigError(f"{error} (see {prog} --help)") from error


def run_job(
    job: Callable[[Config], None], config_type: type[Config], argv: Sequence[str] | None, *, prog: str, description: str
) -> int:
    """Parse, run, and turn an error into one line on standard error and its exit code."""
    from llmray import console

    console.setup()
    try:
        job(parse(config_type, argv, prog=prog, description=description))
    except LLMRayError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command goes on from the last finished step", file=sys.stderr)
        return 130
    return 0
