"""Compiled kernels: the one place that imports numba, and how the house compiles.

Rules of the room:
- A kernel states its types: it compiles once, at import, and nothing a caller passes can make it compile again while a
  request waits. Arguments that a kernel only reads are declared read-only, so arrays over received bytes fit.
- Machine code is kept on disk beside the source (numba's cache), so a process start loads it instead of compiling.
- No fast-math and no threads inside: the same rows in the same order give the same bits.
- Kernels run without the GIL: an event loop in the same process keeps answering meanwhile.
- Kernels allocate nothing: what they need besides their arguments is an argument, too. So they are compiled without
  numba's counting of references, which costs more than the work where a row is a view (`_nrt`, off in numba's own
  tests of code without a runtime).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar, cast

from millstream import errors

try:
    import numba
    from numba import types
except ImportError as missing:
    raise errors.Missing.extra("learn", "feature rows and learning online") from missing

Function = TypeVar("Function", bound=Callable[..., Any])

void, u8, u32, u64 = types.void, types.uint8, types.uint32, types.uint64
i32, i64, f32, f64 = types.int32, types.int64, types.float32, types.float64

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "_nrt": False}


def given(element: Any, dimensions: int = 1, layout: Literal["C", "A"] = "C") -> Any:
    """The type of an array that a kernel only reads; layout "A" also takes strided views."""
    return types.Array(element, dimensions, layout, readonly=True)


def kernel(signature: Any) -> Callable[[Function], Function]:
    """Compile for exactly `signature`; called from Python."""

    def compiled(function: Function) -> Function:
        try:
            return cast(Function, numba.njit(signature, cache=True, **_OPTIONS)(function))
        except RuntimeError:  # nowhere to write machine code (read-only image, no home): seconds at every start instead
            return cast(Function, numba.njit(signature, **_OPTIONS)(function))

    return compiled


def inner(function: Function) -> Function:
    """Compile as part of the kernels that call it; it lives in their file, or their cache would not see it change."""
    return cast(Function, numba.njit(function))


def unchecked(function: Function) -> Function:
    """As `inner`, where a division by zero gives infinity, as IEEE 754 has it: a loop that looks for zeros first is
    never widened to several numbers at a time. For divisors that cannot be zero."""
    return cast(Function, numba.njit(error_model="numpy")(function))


def record(dtype: Any) -> Any:
    """The element type of a structured array."""
    return numba.from_dtype(dtype)
