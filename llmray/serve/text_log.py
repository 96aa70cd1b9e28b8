"""How much text the output log keeps: all, a share of the outputs, masked, or none.

Which outputs keep their texts depends on their ids alone, so every gateway and every retry decides alike, and the `n`
answers to one request are drawn one by one; a shadow's answer goes with the one that people got. Everything but the texts is always kept. Rejected: a random draw (a batch
that is sent again would be drawn again), and masking on the request path (it reads every character; the log's queue is
emptied in a thread).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmray import personal
from llmray.detectors import phone_library
from llmray.digest import fraction_of
from llmray.errors import ConfigError
from llmray.outputs import Output
from llmray.serve.variants import TextLog

logger = logging.getLogger(__name__)

_NAMES = frozenset({"role", "type", "tool_call_id", "id", "name"})
"""Parts of a message that say what it is, not what was said."""


def check(policy: TextLog) -> None:
    """Refuse a policy that cannot be kept here.

    Raises:
        ConfigError: texts are to be masked, and the package that knows telephone numbers is not installed.
    """
    if policy.redact:
        try:
            phone_library()
        except ConfigError as error:
            raise ConfigError('text_log.redact needs phonenumbers: pip install "llmray[curate]"') from error


def kept(record: Output, policy: TextLog) -> Output:
    """What the log keeps of an output."""
    if fraction_of(f"text:{record.shadow_of or record.id}") * 100.0 >= policy.share:
        return _without_texts(record)
    if not policy.redact:
        return record
    try:
        return replace(
            record,
            messages=[_masked(message) for message in record.messages],
            variables={name: _masked(value) for name, value in record.variables.items()},
            completion=_masked(record.completion),
            sampling={name: _masked(value) if name == "metadata" else value for name, value in record.sampling.items()},
        )
    except Exception:  # whatever it was: a text that could not be masked must not be kept
        logger.exception("the texts of output %s could not be masked, and are not kept", record.id)
        return _without_texts(record)


def output_size(record: Output) -> int:
    """About how many bytes of memory an output takes."""
    return size_of((record.messages, record.variables, record.completion, record.sampling, record.documents))


def size_of(value: Any) -> int:
    """About how many bytes of memory a value takes, by its texts and numbers."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(name)) + size_of(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return 8


def _without_texts(record: Output) -> Output:
    return replace(record, messages=[], variables={}, completion="", text_kept=False)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return personal.masked(value, personal.find(value))
    if isinstance(value, Mapping):
        return {name: item if name in _NAMES else _masked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
