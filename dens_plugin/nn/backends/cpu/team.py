"""Loops that Numba compiles, run by the threads that torch computes with.

A loop is a C function of one table of numbers: how many rows there are, then addresses of arrays and whatever else it
needs. Every thread of torch's OpenMP pool calls it once and takes its share of the rows. A pool of their own would
compete with torch's, whose threads stay awake for milliseconds after an operation.

Numba and its compiler LLVM come with fairchem. What they compiled is kept on disk, so that the first use alone
takes some seconds. Without them, as for versions that do not fit each other, plain torch computes the same.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import llvmlite.binding as llvm
    import numba
    from numba import carray, cfunc, njit
    from numba.extending import intrinsic
    from numba.np.unsafe.ndarray import to_fixed_tuple
except Exception as error:  # Numba refuses a NumPy that it does not know by an ImportError, older ones by others
    _IMPORT_ERROR: Exception | None = error
    numba = llvm = carray = cfunc = to_fixed_tuple = None

    def njit(function: Any = None, **_options: Any) -> Any:
        """Leave a function as it is: nothing calls it."""
        return njit if function is None else function

    intrinsic = njit
else:
    _IMPORT_ERROR = None

__all__ = [
    "ARGUMENTS",
    "FLOAT",
    "Loop",
    "compiled",
    "floats",
    "inlined",
    "integers",
    "loops_reason",
    "named",
    "pointer_to_float",
    "rows_of_thread",
    "scratch_of_thread",
    "table_of",
    "to_fixed_tuple",
    "uses_loops",
    "wide_vectors",
    "without_overlap",
]

FLOAT = 4  # bytes of a number
ARGUMENTS = 3  # where a loop's own arguments begin in its table

_SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")

# A product and a sum may be one instruction; sums are never reordered, and NaN and infinity stay what they are. Not
# kept on disk one by one: Numba would not see that another file changed which a function calls (`Loop` does).
compiled = functools.partial(njit, fastmath={"contract"}, error_model="numpy")
inlined = functools.partial(compiled, forceinline=True)


def named(name: str) -> Callable[[Any], Any]:
    """Name one of several functions that are made in one place.

    What Numba keeps on disk calls a function by its name and by a number that counts the functions of a process. Two of
    one name, compiled by two processes, may have one number, and a third process takes one of them for both.
    """

    def rename(function: Any) -> Any:
        function.__name__ = function.__qualname__ = name
        return function

    return rename


def loops_reason() -> str | None:
    """Why plain torch computes what these loops would, or None where they can run.

    The last check runs a small loop: what a machine does not allow shows there, once, and not in the middle of a step.
    """
    return (_IMPORT_ERROR and f"Numba cannot be imported: {_IMPORT_ERROR}") or _openmp()[1] or _probe()


def uses_loops(*tensors: torch.Tensor) -> bool:
    """Whether the loops compute with these: all float32 on a CPU, where loops can run."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors) and loops_reason() is None


class Loop:
    """A function of a table, compiled at its first use.

    Args:
        function: of a pointer to the table, which it reads by `rows_of_thread`, `floats` and `integers`.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function

    @functools.cached_property
    def address(self) -> int:
        """Of the compiled function."""
        function = self._function
        kept = types.FunctionType(function.__code__, function.__globals__, function.__name__)
        kept.__module__, kept.__qualname__ = function.__module__, f"{function.__name__}_{_fingerprint()}"
        compile_one = functools.partial(cfunc, numba.void(numba.types.voidptr))
        try:
            return int(compile_one(cache=True)(kept).address)
        except Exception:  # there is no folder to keep it in, or what is kept there is damaged
            return int(compile_one()(kept).address)

    def run(self, rows: int, *arguments: torch.Tensor | int, scratch: int = 0) -> None:
        """Let torch's threads take their shares of the rows.

        Args:
            rows: how many there are.
            arguments: what the table holds from `ARGUMENTS` on: tensors as the addresses of their first elements.
            scratch: numbers in float32 that every thread needs for itself.

        Raises:
            TypeError: for a tensor that a loop would misread.
        """
        if rows == 0:
            return
        threads = min(torch.get_num_threads(), rows)
        memory = torch.empty(threads, scratch, dtype=torch.float32, device="cpu")
        numbers = [_address(a) if isinstance(a, torch.Tensor) else a for a in (rows, memory, scratch, *arguments)]
        table = np.array(numbers, dtype=np.int64)
        library = _openmp()[0]
        assert library is not None, "whoever runs a loop has asked `uses_loops`"
        library.GOMP_parallel(self.address, table.ctypes.data, threads, 0)


def _address(tensor: torch.Tensor) -> int:
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.int64):
        raise TypeError(f"loops read float32 and int64 on a CPU, got {tensor.dtype} on {tensor.device}")
    return tensor.data_ptr()


@intrinsic
def wide_vectors(_typing_context):  # type: ignore[no-untyped-def]
    """Where a function calls this, LLVM may use 512 bits at a time, which on its own account it avoids.

    It prefers 256, as other code would suffer from a lower clock rate; a loop that is arithmetic alone gains.
    """

    def generate(context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        # `add` of llvmlite knows a list of attributes and refuses all others.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.void(), generate


@intrinsic
def without_overlap(_typing_context):  # type: ignore[no-untyped-def]
    """Where a function calls this, LLVM may take the memory behind its pointers to be apart.

    It then turns loops over many arrays into vectors without a look at each two of them. An array that is only read may
    stand twice among the arguments.
    """

    def generate(context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        for argument in builder.function.args[2:]:  # Numba's own come first
            if argument.type.is_pointer:
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return numba.void(), generate


@inlined
def table_of(pointer):  # type: ignore[no-untyped-def]
    """The table behind a pointer; it is as long as what is read of it."""
    return carray(pointer, (64,), np.int64)


@inlined
def rows_of_thread(table):  # type: ignore[no-untyped-def]
    """First row of this thread's share, and the row behind its last."""
    number, count = _thread_number(), _thread_count()
    return table[0] * number // count, table[0] * (number + 1) // count


@inlined
def scratch_of_thread(table):  # type: ignore[no-untyped-def]
    """Address of the numbers that are this thread's own."""
    return table[1] + FLOAT * table[2] * _thread_number()


@inlined
def floats(address, shape):  # type: ignore[no-untyped-def]
    """Array of float32 at an address; a view of no owner, of which no references are counted."""
    return carray(pointer_to_float(address), shape, np.float32)


@inlined
def integers(address, shape):  # type: ignore[no-untyped-def]
    """Array of int64 at an address."""
    return carray(_integer_pointer(address), shape, np.int64)


def _pointer_to(kind: str) -> Any:
    @intrinsic
    def pointer(_typing_context, _address):  # type: ignore[no-untyped-def]
        signature = numba.types.CPointer(getattr(numba, kind))(numba.int64)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


pointer_to_float, _integer_pointer = _pointer_to("float32"), _pointer_to("int64")
if numba is not None:
    _thread_number = numba.types.ExternalFunction("omp_get_thread_num", numba.int32())
    _thread_count = numba.types.ExternalFunction("omp_get_num_threads", numba.int32())


@functools.cache
def _openmp() -> tuple[ctypes.CDLL | None, str | None]:
    """The OpenMP library that torch's operations run on, or why it cannot be used."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))  # whose symbols are also those of the libraries that it needs
        addresses = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _SYMBOLS}
    except (OSError, AttributeError) as error:
        return None, f"torch's OpenMP library is not to be had: {error}"
    for name in _SYMBOLS[1:]:
        llvm.add_symbol(name, addresses[name])
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library, None


@functools.cache
def _fingerprint() -> str:
    """Of all files of this folder, of which any may change what a loop does."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def _add_one(pointer):  # type: ignore[no-untyped-def]
    table = table_of(pointer)
    numbers = floats(table[ARGUMENTS], (table[0],))
    start, stop = rows_of_thread(table)
    for row in range(start, stop):
        numbers[row] += 1


_PROBE = Loop(_add_one)


@functools.cache
def _probe() -> str | None:
    """What keeps the smallest loop from running here."""
    numbers = torch.zeros(1000, dtype=torch.float32, device="cpu")
    try:
        _PROBE.run(len(numbers), numbers)
    except Exception as error:  # whatever it is, plain torch computes the same
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason: str | None = f"a loop cannot be compiled or run: {first_line}"
    else:
        reason = None if bool((numbers == 1).all()) else "loops compute wrong numbers"
    if reason is not None:
        logging.info(f"Plain torch computes on the CPU, as {reason}.")
    return reason
