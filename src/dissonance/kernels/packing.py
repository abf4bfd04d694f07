"""Windows of any lengths as packed rows: one row a video frame, windows one after the other, no padding in between.

A kernel's program owns a tile of rows, whatever windows they belong to; what it needs to know of a row (its window, and which row of the sound
is heard at the same moment) is here. A sound that several face tracks share is stored once: their windows name the same rows of it.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where windows lie in packed rows. Made once for a layout, used for every batch of it."""

    offsets: Tensor  # (windows + 1,) int32: window w has rows offsets[w] to offsets[w + 1] - 1
    window: Tensor  # (rows,) int32: the window of a row
    sound_row: Tensor  # (rows,) int32: the row of `audio` at the same moment
    square_offsets: Tensor  # (windows + 1,) int64: where each window's T x T matrix begins in a flat tensor of them all
    longest: int  # frames of the longest window
    sound_rows: int  # rows that `audio` must have
    shared: bool  # whether two windows may hear the same rows

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        """How many video frames there are in all windows."""
        return len(self.window)

    def unshared(self) -> Self:
        """The same windows, each with rows of the sound of its own: for a sound gathered by `sound_row`."""
        row = torch.arange(self.rows, dtype=torch.int32, device=self.window.device)
        return replace(self, sound_row=row, sound_rows=self.rows, shared=False)

    @classmethod
    def uniform(cls, windows: int, frames: int, *, device: torch.device | str = "cpu", sound: Tensor | None = None) -> Self:
        """`windows` windows of `frames` frames each. `sound` (windows,): which window of the sound each hears (None: its own).

        Does not wait for the GPU, unless there is a `sound`. Raises ValueError where that does not name a window for each.
        """
        index, row = torch.arange(windows + 1, device=device), torch.arange(windows * frames, device=device)
        heard, sound_row = windows, row
        if sound is not None:
            if len(sound) != windows or (windows and int(sound.min()) < 0):
                raise ValueError("`sound` must have an index from 0 for every window")
            heard = int(sound.max()) + 1 if windows else 0
            sound_row = (sound.to(row)[:, None] * frames + row[:frames]).flatten() if windows else row
        _check_rows(windows * frames, heard * frames)
        return cls(
            offsets=(index * frames).to(torch.int32),
            window=torch.div(row, max(frames, 1), rounding_mode="floor").to(torch.int32),
            sound_row=sound_row.to(torch.int32),
            square_offsets=index * frames * frames,
            longest=frames,
            sound_rows=heard * frames,
            shared=sound is not None,
        )

    @classmethod
    def of_lengths(cls, lengths: Tensor, *, sound: Tensor | None = None, sound_lengths: Tensor | None = None) -> Self:
        """Windows of `lengths` (windows,) frames, zero allowed.

        `sound` (windows,) and `sound_lengths` (sounds,): which window of the sound each hears, and how long those are. Both or none.
        Waits for the GPU where they are on one. Raises ValueError where a window and its sound differ in length.
        """
        if (sound is None) != (sound_lengths is None):
            raise ValueError("give `sound` and `sound_lengths`, or neither")
        lengths = lengths.to(torch.int64)
        offsets, squares = _cumulative(lengths), _cumulative(lengths * lengths)
        window = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        row = torch.arange(len(window), device=lengths.device)
        sound_row = row
        sound_rows = len(row)
        if sound is not None and sound_lengths is not None:
            sound = sound.to(lengths.device, torch.int64)
            sound_lengths = sound_lengths.to(lengths.device, torch.int64)
            known = len(sound) == len(lengths) and bool(((sound >= 0) & (sound < len(sound_lengths))).all())
            if not known or not bool((sound_lengths[sound] == lengths).all()):
                raise ValueError("every window must name a sound of its own length")
            sound_row = _cumulative(sound_lengths)[sound][window] + row - offsets[window]
            sound_rows = int(sound_lengths.sum())
        _check_rows(len(row), sound_rows)
        return cls(
            offsets=offsets.to(torch.int32),
            window=window.to(torch.int32),
            sound_row=sound_row.to(torch.int32),
            square_offsets=squares,
            longest=int(lengths.max()) if len(lengths) else 0,
            sound_rows=sound_rows,
            shared=sound is not None,
        )


def _cumulative(counts: Tensor) -> Tensor:
    """(n,) -> (n + 1,) int64: 0, then the running sums."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _check_rows(rows: int, sound_rows: int) -> None:
    if max(rows, sound_rows) >= 2**31:
        raise ValueError(f"{rows} rows of picture and {sound_rows} of sound do not fit 32 bits. Split the batch.")
