"""What the kernels share on the GPU: loads of tiles of rows, lengths of rows, and which pairs of a tile of S may see each other."""

import triton
import triton.language as tl

NORM_EPSILON = 1e-12  # as torch.nn.functional.normalize: rows shorter than this are divided by it
_EPSILON = tl.constexpr(NORM_EPSILON)


@triton.jit
def load_rows(X_ptr, row, keep, column, WIDTH: tl.constexpr):
    """Columns of rows of X (rows, WIDTH), zero where `keep` (a flag a row) is off or the column is outside: (len(row), len(column))."""
    return tl.load(X_ptr + row[:, None] * WIDTH + column[None, :], mask=keep[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def inverse_lengths(X_ptr, row, keep, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """1 / max(|x|, 1e-12) in float32 for BLOCK rows of X (rows, WIDTH), read in pieces of BLOCK_K columns."""
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        x = load_rows(X_ptr, row, keep, start + tl.arange(0, BLOCK_K), WIDTH).to(tl.float32)
        squares += tl.sum(x * x, 1)
    return 1.0 / tl.maximum(tl.sqrt(squares), _EPSILON)


@triton.jit
def load_columns(window_ptr, sound_row_ptr, valid_ptr, column, end):
    """Of packed rows as columns of S: their window (-2 beyond `end`), the row of the sound that each hears, and whether it is valid."""
    inside = column < end
    window = tl.load(window_ptr + column, mask=inside, other=-2)
    valid = tl.load(valid_ptr + column, mask=inside, other=0) != 0
    return window, tl.load(sound_row_ptr + column, mask=inside, other=0), valid
