"""How the kernels of this package are compiled: numba, on first call, one thread, no fast-math, kept on disk.

Compiled code is kept beside its source, or in `NUMBA_CACHE_DIR`, or in the user's cache folder, whichever can be
written; where none can (a read-only image without a home) it is compiled anew in each process, and that is logged.
Numba names what it keeps by the digest of the *entry's* source file, so an entry and all that it calls share a file.
Rejected: an extension in C or Rust, which needs a compiler at install time or a wheel for each platform, and
`fastmath`, whose sums depend on the width of the machine's vectors.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import types
from numba.extending import intrinsic

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def entry(function: Function) -> Function:
    """A kernel that Python calls: compiled for the argument types of its first call, kept on disk where possible."""
    try:
        made: Function = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:  # Numba's word for "no folder can be written".
        log.warning("compiled kernels cannot be kept, so each process compiles them: set NUMBA_CACHE_DIR (%s)", error)
        made = numba.njit(**_OPTIONS)(function)
    return made


def inner(function: Function) -> Function:
    """A part of a kernel, compiled with the entries that call it."""
    made: Function = numba.njit(**_OPTIONS)(function)
    return made


@intrinsic
def trailing_zeros(_: Any, __: Any) -> Any:
    """How many of the lowest bits are zero; 64 for 0."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), generate


@intrinsic
def count_ones(_: Any, __: Any) -> Any:
    """How many bits are one."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def affine32(_: Any, __: Any, ___: Any, ____: Any) -> Any:
    """First + second · third modulo 2^32: in numba's own arithmetic 32-bit numbers become 64-bit lanes, half as many."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.add(arguments[0], builder.mul(arguments[1], arguments[2]))

    return types.uint32(types.uint32, types.uint32, types.uint32), generate


@intrinsic
def load64(_: Any, array: Any, __: Any) -> Any:
    """The eight bytes from a place on as one little-endian number, wherever the place is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        wide = context.get_value_type(types.uint64).as_pointer()
        loaded = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), wide))
        loaded.align = 1
        return loaded

    return types.uint64(array, types.intp), generate
