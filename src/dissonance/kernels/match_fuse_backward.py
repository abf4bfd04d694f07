"""The gradient of `match_fuse`: the matching part in a kernel that forms S again tile by tile, the rest plain matrix products.

With dz = dg GELU'(z), df = dz W and (du, dpi, dm) gathering what reaches u, pi and m through f and from outside:

    dP_ij = <du_i, a_j> + [i = j] dpi_i
    dS_ij = P_ij (dP_ij - delta_i) / tau + [i = j] dm_i + dc_{j-i} / n_{j-i},  delta_i = sum_j P_ij dP_ij = <du_i, u_i> + dpi_i pi_i
    dv_i += sum_j dS_ij a_j,  da_j += sum_i dS_ij v_i + P_ij du_i

P is recovered from S and the logarithm of each row's sum, which the forward pass kept (Dao et al., FlashAttention, 2022, appendix B.4); n_d is the
number of valid pairs at lag d. One kernel gives dv (a program owns rows, visits columns) or da (it owns columns, visits rows); the second grid axis
is the part of D that a program adds up. No atomics: sums are in a fixed order. Unit length and shared sounds are torch's own operations before the
kernel, so their gradients are torch's. No GPU has run this yet, as `match_fuse` says of itself.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dissonance.kernels.packing import Packing
from dissonance.kernels.tiles import load_rows
from dissonance.kernels.tiling import Tiling

LOG2_E = 1.4426950408889634


@triton.jit
def _score_gradient(s, dp, i, j, seen, log_sum, delta, dpi, dm, window, lag_gradient_ptr, score_scale, inverse_tau, MAX_LAG: tl.constexpr):
    """P and dS of a tile; what belongs to i has the tile's shape or broadcasts to it."""
    p = tl.where(seen, tl.exp2(s * score_scale - log_sum), 0.0)
    ds = p * (dp + tl.where(i == j, dpi, 0.0) - delta) * inverse_tau + tl.where(i == j, dm, 0.0)
    shift = j - i
    near = seen & (shift >= -MAX_LAG) & (shift <= MAX_LAG)
    ds += tl.load(lag_gradient_ptr + window * (2 * MAX_LAG + 1) + shift + MAX_LAG, mask=near, other=0.0)
    return p, tl.where(seen, ds, 0.0)


@triton.jit(do_not_specialize=["rows"])
def _match_backward_kernel(
    V_ptr, A_ptr, dU_ptr, window_ptr, valid_ptr, offsets_ptr, log_sum_ptr, delta_ptr, dpi_ptr, dm_ptr, lag_gradient_ptr, out_ptr,
    rows, score_scale, inverse_tau,
    D: tl.constexpr, MAX_LAG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_U: tl.constexpr,
    OF_SOUND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    dtype = V_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_M
    part = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    own = first + tl.arange(0, BLOCK_M)
    inside = own < rows
    own_window = tl.load(window_ptr + own, mask=inside, other=-1)
    own_valid = tl.load(valid_ptr + own, mask=inside, other=0) != 0
    begin = tl.load(offsets_ptr + tl.load(window_ptr + first))
    end = tl.load(offsets_ptr + 1 + tl.load(window_ptr + tl.minimum(first + BLOCK_M, rows) - 1))
    out = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
    for start in range(begin, end, BLOCK_N):
        other = start + tl.arange(0, BLOCK_N)
        other_window = tl.load(window_ptr + other, mask=other < end, other=-2)
        other_valid = tl.load(valid_ptr + other, mask=other < end, other=0) != 0
        seen = (own_window[:, None] == other_window[None, :]) & own_valid[:, None] & other_valid[None, :]
        s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        dp = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first_k in range(0, D, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            if OF_SOUND:
                a = load_rows(A_ptr, own, own_valid, k, D)
                s = tl.dot(a, tl.trans(load_rows(V_ptr, other, other_valid, k, D)), s, input_precision=PRECISION)
                dp = tl.dot(a, tl.trans(load_rows(dU_ptr, other, other_valid, k, D)), dp, input_precision=PRECISION)
            else:
                a = tl.trans(load_rows(A_ptr, other, other_valid, k, D))
                s = tl.dot(load_rows(V_ptr, own, own_valid, k, D), a, s, input_precision=PRECISION)
                dp = tl.dot(load_rows(dU_ptr, own, own_valid, k, D), a, dp, input_precision=PRECISION)
        if OF_SOUND:
            i, picture_valid, window = other[None, :], other_valid, other_window[None, :]
            j = own[:, None]
            log_sum = tl.load(log_sum_ptr + other, mask=picture_valid, other=0.0)[None, :]
            delta = tl.load(delta_ptr + other, mask=picture_valid, other=0.0)[None, :]
            dpi = tl.load(dpi_ptr + other, mask=picture_valid, other=0.0)[None, :]
            dm = tl.load(dm_ptr + other, mask=picture_valid, other=0.0)[None, :]
        else:
            i, picture_valid, window = own[:, None], own_valid, own_window[:, None]
            j = other[None, :]
            log_sum = tl.load(log_sum_ptr + own, mask=picture_valid, other=0.0)[:, None]
            delta = tl.load(delta_ptr + own, mask=picture_valid, other=0.0)[:, None]
            dpi = tl.load(dpi_ptr + own, mask=picture_valid, other=0.0)[:, None]
            dm = tl.load(dm_ptr + own, mask=picture_valid, other=0.0)[:, None]
        p, ds = _score_gradient(s, dp, i, j, seen, log_sum, delta, dpi, dm, window, lag_gradient_ptr, score_scale, inverse_tau, MAX_LAG)
        if OF_SOUND:
            out = tl.dot(ds.to(dtype), load_rows(V_ptr, other, other_valid, part, D), out, input_precision=PRECISION)
            out = tl.dot(p.to(dtype), load_rows(dU_ptr, other, other_valid, part, D), out, input_precision=PRECISION)
        else:
            out = tl.dot(ds.to(dtype), load_rows(A_ptr, other, other_valid, part, D), out, input_precision=PRECISION)
    tl.store(out_ptr + own[:, None] * D + part[None, :], out.to(dtype), mask=inside[:, None] & (part < D)[None, :])


def launch_backward(
    visual: Tensor, audio: Tensor, d_attended: Tensor, valid: Tensor, packing: Packing, log_sum: Tensor, delta: Tensor,
    d_row_match: Tensor, d_matched: Tensor, lag_gradient: Tensor, *, tau: float, max_lag: int, precision: str, tiling: Tiling,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What reaches v and a through S and u: (rows, D) each. `visual`, `audio`, `d_attended` (rows, D), unit rows; the rest float32."""
    rows, dim = visual.shape
    found = torch.empty_like(visual), torch.empty_like(visual)
    if not rows or not dim:
        return found
    for out, of_sound in zip(found, (False, True), strict=True):
        _match_backward_kernel[(triton.cdiv(rows, tiling.block_m), triton.cdiv(dim, tiling.block_u))](
            visual, audio, d_attended, packing.window, valid, packing.offsets, log_sum, delta, d_row_match, d_matched, lag_gradient, out,
            rows, LOG2_E / tau, 1.0 / tau,
            **backward_constants(tiling, dim=dim, max_lag=max_lag), OF_SOUND=of_sound, PRECISION=precision,
            num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
    return found


def backward_constants(tiling: Tiling, *, dim: int, max_lag: int) -> dict[str, int]:
    """The compile-time arguments of the backward kernel that follow from sizes and tiling."""
    return {
        "D": dim, "MAX_LAG": max_lag,
        "BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n, "BLOCK_K": tiling.block_k, "BLOCK_U": tiling.block_u,
    }  # fmt: skip


def backward_argument_types(dtype: str) -> dict[str, str]:
    """The backward kernel's run-time arguments for inputs of `dtype`, to compile it ahead of time."""
    return {
        **{f"{name}_ptr": f"*{dtype}" for name in ("V", "A", "dU", "out")},
        **{f"{name}_ptr": "*fp32" for name in ("log_sum", "delta", "dpi", "dm", "lag_gradient")},
        "window_ptr": "*i32", "offsets_ptr": "*i32", "valid_ptr": "*u8", "rows": "i32", "score_scale": "fp32", "inverse_tau": "fp32",
    }  # fmt: skip


def gradients(saved: Any, d_fused: Tensor, d_matched: Tensor, d_lag: Tensor, d_row_match: Tensor, d_attended: Tensor) -> tuple[Tensor, ...]:
    """Of v, a (unit rows, (rows, D) each), `parts`, `scalars` and `bias`, from those of the results. `saved` is `match_fuse`'s `Saved`."""
    v, a, parts, scalars, z = saved.visual, saved.audio, saved.weights.parts, saved.weights.scalars, saved.z
    dz = torch.ops.aten.gelu_backward(d_fused, z)
    known = [v, a, v * a, saved.attended][: len(parts)]
    d_parts = torch.stack([dz.t() @ x for x in known])
    scalar_gradients = dz.float() @ scalars.float().t()  # (rows, 2): what reaches m and pi through f
    dm, dpi = d_matched + scalar_gradients[:, 0], d_row_match + scalar_gradients[:, 1]
    d_scalars = torch.stack([saved.matched, saved.row_match]) @ dz.float()
    du = (d_attended + dz @ parts[3] if len(parts) == 4 else d_attended).contiguous()
    delta = (du.float() * saved.attended.float()).sum(dim=-1) + dpi * saved.row_match
    d_product = dz @ parts[2]
    dv, da = launch_backward(
        v, a, du, saved.valid, saved.packing, saved.log_sum, delta, dpi.contiguous(), dm.contiguous(),
        (d_lag / saved.pairs.clamp(min=1.0)).contiguous(),
        tau=saved.options.tau, max_lag=saved.options.max_lag, precision=saved.options.precision, tiling=saved.tiling,
    )  # fmt: skip
    dv, da = dv + dz @ parts[0] + d_product * a, da + dz @ parts[1] + d_product * v
    return dv, da, d_parts, d_scalars.to(scalars.dtype), dz.sum(dim=0)
