"""What may vary in a search, written as people write it: `loguniform(1e-4, 3e-3)`, `uniform(0, 0.1)`, `choice(8, 32)`.

The same spelling works in YAML, in flags and in code. Points come from a seed and an index alone, so a search that is
taken up again meets the same points. The first points of a few are spread out (a shifted Halton sequence, whose
first n points cover each axis far more evenly than n random ones: Bergstra and Bengio 2012, section 5). Rejected: Ray
Tune's own samplers, whose points depend on how many were drawn before a crash; grids, which spend most trials on axes
that do not matter.
"""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmray.digest import canonical_json, fraction_of
from llmray.errors import ConfigError

_CALL = re.compile(r"\s*(uniform|loguniform|choice)\s*\((.*)\)\s*", re.DOTALL)
_MIDDLES = 64
Scalar = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    kind: Literal["uniform", "loguniform", "choice"]
    """How values are spread."""
    values: tuple[Scalar, ...]
    """The two ends of a range, or the choices."""

    def __post_init__(self) -> None:
        if self.kind == "choice":
            if not self.values:
                raise ConfigError("choice() needs at least one value: choice(8, 32)")
            return
        if len(self.values) != 2 or not all(_is_number(value) for value in self.values):
            raise ConfigError(f"{self.kind}{self.values} needs two numbers: {self.kind}(1e-4, 1e-3)")
        low, high = (float(value) for value in self.values if isinstance(value, int | float))
        if not low < high or not math.isfinite(high - low):
            raise ConfigError(f"{self.kind}({low:g}, {high:g}) must rise from its first to its second number")
        if self.kind == "loguniform" and low <= 0:
            raise ConfigError(f"loguniform({low:g}, {high:g}) must start above zero: use uniform for a range with zero")

    def at(self, place: float) -> Scalar:
        """The value at a place in [0, 1)."""
        if self.kind == "choice":
            return self.values[int(place * len(self.values))]
        low, high = (float(value) for value in self.values if isinstance(value, int | float))
        if self.kind == "loguniform":
            return min(high, math.exp(math.log(low) + place * (math.log(high) - math.log(low))))
        return min(high, low + place * (high - low))


def parse_space(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """Read a search space.

    Args:
        space: option to a `Dimension`, its spelling, a list of choices, or one fixed value.

    Raises:
        ConfigError: a spelling that is none, an impossible range, or nothing that varies.
    """
    dimensions = {name: _dimension(name, value) for name, value in space.items()}
    if not any(dimension.kind != "choice" or len(dimension.values) > 1 for dimension in dimensions.values()):
        raise ConfigError('tune.space has nothing that varies: for example {"lr": "loguniform(1e-4, 3e-3)"}')
    return dimensions


def sample(space: Mapping[str, Any], *, count: int, seed: int) -> list[dict[str, Scalar]]:
    """Distinct points, the same for the same seed; fewer than `count` only where the space has no more.

    A longer sample starts with the shorter one.
    """
    dimensions = parse_space(space)
    points: list[dict[str, Scalar]] = []
    known: set[bytes] = set()
    for index in range(count * _MIDDLES):
        if len(points) == count:
            break
        point = {
            name: dimension.at(_place(index, prime, f"{seed}:{name}"))
            for (name, dimension), prime in zip(sorted(dimensions.items()), _primes(len(dimensions)), strict=True)
        }
        key = canonical_json(point)
        if key not in known:
            known.add(key)
            points.append({name: point[name] for name in space})
    return points


def _dimension(name: str, value: Any) -> Dimension:
    if isinstance(value, Dimension):
        return value
    if isinstance(value, list | tuple):
        return Dimension(kind="choice", values=tuple(value))
    if not isinstance(value, str):
        return Dimension(kind="choice", values=(value,))
    match = _CALL.fullmatch(value)
    if match is None:
        if "(" in value:
            raise ConfigError(f"tune.space.{name} ({value}) must be uniform(a, b), loguniform(a, b) or choice(a, b, …)")
        return Dimension(kind="choice", values=(value,))
    kind: Any = match[1]
    try:
        return Dimension(kind=kind, values=tuple(_literal(part) for part in match[2].split(",") if part.strip()))
    except ConfigError as error:
        raise ConfigError(f"tune.space.{name}: {error}") from error


def _literal(text: str) -> Scalar:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()  # a bare word: choice(cosine, linear)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{text.strip()} is no plain value")


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(index: int, prime: int, key: str) -> float:
    """Element of the van der Corput sequence in a prime base, shifted by the key (Cranley and Patterson 1976)."""
    place, scale, rest = 0.0, 1.0, index
    while rest:
        rest, digit = divmod(rest, prime)
        scale /= prime
        place += scale * digit
    return (place + fraction_of(key)) % 1.0


def _primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes
