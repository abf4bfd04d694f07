"""Batches on a GPU: run in powers of two, for each of which memory is laid out and a CUDA graph captured once; smaller where memory is short."""

from collections.abc import Callable

from dissonance.errors import EnvironmentMissingError

MOST_ROWS = 1 << 16  # of a batch that is run in one, where nothing else says how many


class GpuMemoryError(Exception):
    """The GPU has no memory left for a batch of this size. A smaller one may fit."""


def gpu_failed(told: str) -> EnvironmentMissingError:
    """The error for a GPU that answers with one that is not for want of memory: most often it does nothing more for this process."""
    return EnvironmentMissingError(
        f"The GPU failed ({told[:400]}). What is finished is kept: see the system's log and nvidia-smi, then continue with --resume."
    )


class Buckets:
    """Sizes that batches of one network are run in, from `smallest` to `largest` rows. A size that did not fit is not tried again."""

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
                    raise EnvironmentMissingError(
                        f"The GPU has too little free memory for {self._name} with a batch of {size}: {error}. "
                        "End other work on this GPU, or choose another with CUDA_VISIBLE_DEVICES; then continue with --resume."
                    ) from error
                self._sizes = [smaller for smaller in self._sizes if smaller < size]
            else:
                start = stop
