"""What runtimes on a GPU share: sizes of batches, which shrink where memory is short, and the errors for a GPU that is full or lost.

Batches run in powers of two, for each of which memory is laid out and a CUDA graph captured once.
"""

import re
from collections.abc import Callable

from dissonance.errors import EnvironmentMissingError

MOST_ROWS = 1 << 16  # of a batch that is run in one, where nothing else says how many
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|alloc_failed|failed to allocate|memoryallocation", re.IGNORECASE)
_FAILED = re.compile(r"cuda (driver |runtime )?(error|failure)|cublas|cudnn|triton error|nvrtc", re.IGNORECASE)


class GpuMemoryError(Exception):
    """The GPU has no memory left for a batch of this size. A smaller one may fit."""


def is_out_of_memory(told: str) -> bool:
    """Whether a library says that it has no memory left."""
    return _OUT_OF_MEMORY.search(told) is not None


def names_the_gpu(told: str) -> bool:
    """Whether a library says that it is CUDA, or what computes there, that failed."""
    return _FAILED.search(told) is not None


def gpu_failed(told: str) -> EnvironmentMissingError:
    """The error for a GPU that answers with one that is not for want of memory: most often it does nothing more for this process."""
    return EnvironmentMissingError(
        f"The GPU failed ({told[:400]}). What is finished is kept: see the system's log and nvidia-smi, then continue with --resume."
    )


def gpu_full(what: str, told: str) -> EnvironmentMissingError:
    """The error for a GPU that has too little free memory for `what`."""
    return EnvironmentMissingError(
        f"The GPU has too little free memory for {what}: {told[:400]}. End other work on this GPU, or choose another with CUDA_VISIBLE_DEVICES; "
        "then continue with --resume."
    )


class Buckets:
    """Sizes that batches of one network are run in: powers of two, the `smallest` and the `largest`. One that did not fit is not tried again.

    Not for two threads at once: each lane has its own.
    """

    def __init__(self, name: str, *, smallest: int = 1, largest: int) -> None:
        """`name` of the network, for the error."""
        self._name = name
        self._sizes = sorted({smallest, largest, *(1 << power for power in range(largest.bit_length()) if smallest < 1 << power < largest)})

    def run(self, rows: int, part: Callable[[slice, int], None]) -> None:
        """Call `part(rows, size)` for consecutive parts of a batch until all its rows were run, each in a bucket of `size` rows or more.

        A part that raises GpuMemoryError is run again in smaller ones. Raises EnvironmentMissingError where the smallest does not fit.
        """
        start = 0
        while start < rows:
            size = next((size for size in self._sizes if size >= rows - start), self._sizes[-1])
            stop = min(rows, start + size)
            try:
                part(slice(start, stop), size)
            except GpuMemoryError as error:
                if size == self._sizes[0]:
                    raise gpu_full(f"{self._name} with a batch of {size}", str(error)) from error
                self._sizes = [smaller for smaller in self._sizes if smaller < size]
            else:
                start = stop
