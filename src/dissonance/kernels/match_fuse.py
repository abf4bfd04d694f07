"""Match and fuse in one pass over a window: m, the lag profile, pi, u and g, while S = v a^T exists only as tiles on the chip.

The formulas are `dissonance.model.matching`'s, which is this kernel's reference too; softmax over the sound runs online
(Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022).

Layout. Windows are packed rows (`Packing`); a program owns BLOCK_M rows, 128 in 16 bits, whichever windows they belong to, so that four windows
of 32 frames stream W through the chip once, and no row is idle whatever the lengths are. It visits the columns from the first row of its first
window to the last row of its last one, BLOCK_N at a time; a pair counts where both are valid and of one window (S is block-diagonal). Per tile:
S in float32, of which the band of lags |d| <= L is written to memory, and a step of the online softmax, whose weighted sum u is kept for BLOCK_U of
D columns; a wider D takes one more visit, with S again, per BLOCK_U. Then z = W f + b for BLOCK_H outputs at a time: v, a, u and v * a pass by in
pieces of BLOCK_K columns, each multiplied with its part of W, and m and pi are added as outer products, so that f = [v ; a ; u ; v * a ; m ; pi] is
never built. u and S_ii pass through device memory (they are results), read again by the program that wrote them. The lag profile is a second, small
kernel over the bands of a window, because a window may lie in several programs: sums in a fixed order and no atomics, so that a result never
changes between runs.

Numbers. Inputs float32, float16 or bfloat16; products accumulate in float32, float32 inputs in three TF32 products (error near 1e-6; `precision`
chooses). Rows are divided by max(length, 1e-12), as torch does, so unit rows may be given too. g and u have the inputs' type, the rest is float32.
Frames that are not valid count as v = a = 0: m = pi = 0, u = 0, g = GELU(b). No GPU has run this kernel yet: what is known of it comes from Triton's
interpreter and from compiling it ahead of time (`dissonance bench run kernels`).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dissonance.kernels.match_fuse_backward import LOG2_E, gradients
from dissonance.kernels.packing import Packing
from dissonance.kernels.tiles import inverse_lengths, load_columns, load_rows
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.tuning import capability_of, chosen_tiling
from dissonance.kernels.weights import FusionWeights
from dissonance.model.layer import MASKED_SCORE
from dissonance.model.matching import fuse, match

Precision = Literal["tf32x3", "tf32", "ieee"]

LAG_BLOCK = 32  # rows of the band at a time in the lag kernel
LAG_ARGUMENT_TYPES = {
    "band_ptr": "*fp32", "valid_ptr": "*u8", "offsets_ptr": "*i32", "lag_profile_ptr": "*fp32", "pairs_ptr": "*fp32", "best_lag_ptr": "*i64",
}  # fmt: skip
_FAR = tl.constexpr(-1e30)  # the running maximum before anything was seen; pairs that may not see each other score twice that
_MASKED = tl.constexpr(MASKED_SCORE)
_SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit(do_not_specialize=["rows"])  # it bounds loads only; one variant is compiled, the one that the survey reads
def _match_fuse_kernel(
    V_ptr, A_ptr, W_ptr, W_scalar_ptr, bias_ptr, window_ptr, sound_row_ptr, valid_ptr, offsets_ptr, square_offsets_ptr,
    fused_ptr, attended_ptr, matched_ptr, row_match_ptr, band_ptr, log_sum_ptr, z_ptr, S_ptr,
    rows, score_scale,
    D: tl.constexpr, H: tl.constexpr, MAX_LAG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_U: tl.constexpr,
    ATTENDED: tl.constexpr, WRITE_Z: tl.constexpr, WRITE_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    dtype = V_ptr.dtype.element_ty
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < rows
    window = tl.load(window_ptr + row, mask=inside, other=-1)
    valid = tl.load(valid_ptr + row, mask=inside, other=0) != 0
    begin = tl.load(offsets_ptr + tl.load(window_ptr + first_row))
    end = tl.load(offsets_ptr + 1 + tl.load(window_ptr + tl.minimum(first_row + BLOCK_M, rows) - 1))
    if WRITE_S:
        own_first = tl.load(offsets_ptr + window, mask=inside, other=0)
        frames = tl.load(offsets_ptr + 1 + window, mask=inside, other=0) - own_first
        S_row = tl.load(square_offsets_ptr + window, mask=inside, other=0) + (row - own_first).to(tl.int64) * frames - own_first
    inverse_v = inverse_lengths(V_ptr, row, valid, D, BLOCK_M, BLOCK_K)

    for part in tl.static_range(0, D, BLOCK_U):
        peak = tl.full([BLOCK_M], _FAR, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        u = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
        for first_column in range(begin, end, BLOCK_N):
            column = first_column + tl.arange(0, BLOCK_N)
            column_window, sound, column_valid = load_columns(window_ptr, sound_row_ptr, valid_ptr, column, end)
            seen = (window[:, None] == column_window[None, :]) & valid[:, None] & column_valid[None, :]
            s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            squares = tl.zeros([BLOCK_N], tl.float32)
            for start in range(0, D, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                a = load_rows(A_ptr, sound, column_valid, k, D)
                s = tl.dot(load_rows(V_ptr, row, valid, k, D), tl.trans(a), s, input_precision=PRECISION)
                squares += tl.sum(a.to(tl.float32) * a.to(tl.float32), 1)
            inverse_a = 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)
            s = tl.where(seen, s * inverse_v[:, None] * inverse_a[None, :], 0.0)
            if part == 0:
                shift = column[None, :] - row[:, None]
                tl.store(band_ptr + row[:, None] * (2 * MAX_LAG + 1) + shift + MAX_LAG, s, mask=seen & (shift >= -MAX_LAG) & (shift <= MAX_LAG))
                if WRITE_S:
                    same = window[:, None] == column_window[None, :]
                    tl.store(S_ptr + S_row[:, None] + column[None, :], s, mask=same)
            score = tl.where(seen, s * score_scale, 2 * _FAR)
            higher = tl.maximum(peak, tl.max(score, 1))
            p = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(p, 1)
            a = load_rows(A_ptr, sound, column_valid, part + tl.arange(0, BLOCK_U), D).to(tl.float32)
            a *= inverse_a[:, None]
            a = tl.where(a - a == 0.0, a, 0.0)  # 0 * NaN is NaN: a window that is no number spoils its own rows (by p) and no others
            u = tl.dot(p.to(dtype), a.to(dtype), u * shrink[:, None], input_precision=PRECISION)
            peak = higher
        total, peak = tl.where(valid, total, 1.0), tl.where(valid, peak, 0.0)
        dim = part + tl.arange(0, BLOCK_U)
        tl.store(attended_ptr + row[:, None] * D + dim[None, :], (u / total[:, None]).to(dtype), mask=inside[:, None] & (dim < D)[None, :])
    log_sum = peak + tl.log2(total)
    tl.store(log_sum_ptr + row, log_sum, mask=inside)

    tl.debug_barrier()  # u and S_ii were written by other threads of this program than those that read them now
    m = tl.load(band_ptr + row * (2 * MAX_LAG + 1) + MAX_LAG, mask=valid, other=0.0)
    pi = tl.where(valid, tl.exp2(m * score_scale - log_sum), 0.0)
    tl.store(matched_ptr + row, m, mask=inside)
    tl.store(row_match_ptr + row, pi, mask=inside)
    sound = tl.load(sound_row_ptr + row, mask=valid, other=0)
    inverse_a = inverse_lengths(A_ptr, sound, valid, D, BLOCK_M, BLOCK_K)
    for first_output in range(0, H, BLOCK_H):
        output = first_output + tl.arange(0, BLOCK_H)
        known = output < H
        z = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
        for start in range(0, D, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            v_k = load_rows(V_ptr, row, valid, k, D).to(tl.float32) * inverse_v[:, None]
            a_k = load_rows(A_ptr, sound, valid, k, D).to(tl.float32) * inverse_a[:, None]
            W_part_ptr = W_ptr + output[None, :] * D + k[:, None]
            W_mask = known[None, :] & (k < D)[:, None]
            z = tl.dot(v_k.to(dtype), tl.load(W_part_ptr, mask=W_mask, other=0.0), z, input_precision=PRECISION)
            z = tl.dot(a_k.to(dtype), tl.load(W_part_ptr + H * D, mask=W_mask, other=0.0), z, input_precision=PRECISION)
            z = tl.dot((v_k * a_k).to(dtype), tl.load(W_part_ptr + 2 * H * D, mask=W_mask, other=0.0), z, input_precision=PRECISION)
            if ATTENDED:
                u_k = load_rows(attended_ptr, row, valid, k, D)
                z = tl.dot(u_k, tl.load(W_part_ptr + 3 * H * D, mask=W_mask, other=0.0), z, input_precision=PRECISION)
        w_m = tl.load(W_scalar_ptr + output, mask=known, other=0.0).to(tl.float32)
        w_pi = tl.load(W_scalar_ptr + H + output, mask=known, other=0.0).to(tl.float32)
        z += m[:, None] * w_m[None, :] + pi[:, None] * w_pi[None, :] + tl.load(bias_ptr + output, mask=known, other=0.0).to(tl.float32)[None, :]
        at = row[:, None] * H + output[None, :]
        if WRITE_Z:
            tl.store(z_ptr + at, z.to(dtype), mask=inside[:, None] & known[None, :])
        g = 0.5 * z * (1.0 + tl.erf(z * _SQRT_HALF))
        tl.store(fused_ptr + at, g.to(dtype), mask=inside[:, None] & known[None, :])


@triton.jit
def _lag_kernel(
    band_ptr, valid_ptr, offsets_ptr, lag_profile_ptr, pairs_ptr, best_lag_ptr, MAX_LAG: tl.constexpr, LAGS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    window = tl.program_id(0)
    begin, end = tl.load(offsets_ptr + window), tl.load(offsets_ptr + window + 1)
    lag = tl.arange(0, LAGS) - MAX_LAG
    known = lag <= MAX_LAG
    sums, pairs = tl.zeros([LAGS], tl.float32), tl.zeros([LAGS], tl.float32)
    for first_row in range(begin, end, BLOCK):
        row = first_row + tl.arange(0, BLOCK)
        partner = row[:, None] + lag[None, :]
        valid = tl.load(valid_ptr + row, mask=row < end, other=0) != 0
        pair = valid[:, None] & known[None, :] & (partner >= begin) & (partner < end)
        pair &= tl.load(valid_ptr + partner, mask=pair, other=0) != 0
        sums += tl.sum(tl.load(band_ptr + row[:, None] * (2 * MAX_LAG + 1) + (lag + MAX_LAG)[None, :], mask=pair, other=0.0), 0)
        pairs += tl.sum(pair.to(tl.float32), 0)
    profile = sums / tl.maximum(pairs, 1.0)
    at = window * (2 * MAX_LAG + 1) + lag + MAX_LAG
    tl.store(lag_profile_ptr + at, profile, mask=known)
    tl.store(pairs_ptr + at, pairs, mask=known)
    number = tl.where(profile == profile, profile, -_MASKED)  # NaN counts as the largest, as in torch.argmax
    value = tl.where(known, tl.where(pairs > 0, number, _MASKED), 2 * _MASKED)
    rank = tl.where(lag > 0, 2 * lag - 1, -2 * lag)  # 0, 1, -1, 2, -2, ...: the place of a lag in the order of preference
    best = tl.min(tl.where(value == tl.max(value, 0), rank, 2 * LAGS), 0)
    tl.store(best_lag_ptr + window, tl.where(best % 2 == 1, (best + 1) // 2, -(best // 2)).to(tl.int64))


class MatchFuse(NamedTuple):
    """What one pass gives; `rows` stands for (rows,) of a packing, or (windows, T) where the inputs have that form."""

    fused: Tensor  # g (rows, H), the inputs' type
    matched: Tensor  # m (rows), float32
    lag_profile: Tensor  # c (windows, 2L+1), float32, at index d + L; 0 where no pair is valid
    lag_valid: Tensor  # (windows, 2L+1) bool
    best_lag: Tensor  # (windows,) int64; 0 where nothing is valid
    row_match: Tensor  # pi (rows), float32
    attended: Tensor  # u (rows, D), the inputs' type
    similarity: Tensor | None  # S, float32, where asked for: (windows, T, T), or flat by `Packing.square_offsets`


class Forward(NamedTuple):
    """All that the kernels write, in packed rows: results, and what the gradient needs."""

    result: MatchFuse
    pairs: Tensor  # (windows, 2L+1) float32: how many valid pairs a lag has
    log_sum: Tensor  # (rows,) float32: log2 of the sum of a row's softmax
    z: Tensor | None  # (rows, H): W f + b, where asked for


class Options(NamedTuple):
    """What is fixed for a launch."""

    tau: float
    max_lag: int
    precision: Precision = "tf32x3"  # of products of float32: three TF32 products, one (error near 3e-4), or none (no matrix instructions, slow)
    write_similarity: bool = False
    tiling: Tiling | None = None  # None: what was found fastest on this GPU (`dissonance.kernels.tuning`), or the documented default


def launch_forward(
    visual: Tensor, audio: Tensor, valid: Tensor, weights: FusionWeights, packing: Packing, options: Options, *, write_z: bool
) -> Forward:
    """Launch both kernels on packed rows: `visual` (rows, D), `audio` (sound rows, D), `valid` (rows,) uint8."""
    (rows, dim), (parts, outputs, _), lags = visual.shape, weights.parts.shape, 2 * options.max_lag + 1
    tiling = options.tiling or chosen_tiling(visual.device, dtype=visual.dtype, dim=dim, outputs=outputs, longest=packing.longest)
    if options.write_similarity and options.tiling is None:
        tiling = tiling.with_similarity()
    windows = packing.windows
    fused, attended = visual.new_empty(rows, outputs), visual.new_empty(rows, dim)
    matched, row_match, log_sum = (visual.new_empty(rows, dtype=torch.float32) for _ in range(3))
    band, lag_profile, pairs = (visual.new_empty(count, lags, dtype=torch.float32) for count in (rows, windows, windows))
    best_lag = visual.new_empty(windows, dtype=torch.int64)
    z = visual.new_empty(rows, outputs) if write_z else None
    squares = int(packing.square_offsets[-1]) if options.write_similarity else 0
    similarity = visual.new_empty(squares, dtype=torch.float32) if options.write_similarity else None
    if rows:
        _match_fuse_kernel[(triton.cdiv(rows, tiling.block_m),)](
            visual, audio, *weights, packing.window, packing.sound_row, valid, packing.offsets, packing.square_offsets,
            fused, attended, matched, row_match, band, log_sum, z, similarity,
            rows, LOG2_E / options.tau,
            **kernel_constants(tiling, dim=dim, outputs=outputs, max_lag=options.max_lag, parts=parts),
            WRITE_Z=write_z, WRITE_S=options.write_similarity, PRECISION=options.precision, num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
    if windows:
        _lag_kernel[(windows,)](
            band, valid, packing.offsets, lag_profile, pairs, best_lag,
            MAX_LAG=options.max_lag, LAGS=padded_lags(options.max_lag), BLOCK=LAG_BLOCK, num_warps=1,
        )  # fmt: skip
    result = MatchFuse(fused, matched, lag_profile, pairs > 0, best_lag, row_match, attended, similarity)
    return Forward(result, pairs, log_sum, z)


def padded_lags(max_lag: int) -> int:
    """Columns of the band on the chip: a power of two, at least 16."""
    return max(16, 1 << (2 * max_lag).bit_length())


def kernel_constants(tiling: Tiling, *, dim: int, outputs: int, max_lag: int, parts: int) -> dict[str, int | bool]:
    """The compile-time arguments of the forward kernel that follow from sizes and tiling."""
    return {
        "D": dim, "H": outputs, "MAX_LAG": max_lag, "ATTENDED": parts == 4,
        "BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n, "BLOCK_H": tiling.block_h, "BLOCK_K": tiling.block_k, "BLOCK_U": tiling.block_u,
    }  # fmt: skip


def match_fuse(
    visual: Tensor, audio: Tensor, mask: Tensor | None, weights: FusionWeights, options: Options, packing: Packing | None = None
) -> MatchFuse:
    """Match and fuse windows. Differentiable in `visual`, `audio` and `weights` through g, m, c, pi and u (not S).

    `visual` and `audio` are (windows, T, D); or, with a `packing`, (rows, D) and (sound rows, D), or both in their three-dimensional form (K face
    tracks that share sounds: `Packing.uniform(K, T, sound=...)`). `mask` bool, True = valid, (windows, T) or (rows,); None: all. float32, float16 or
    bfloat16, all of one type and on one GPU. Raises ValueError where these do not fit.
    """
    packed = visual.dim() == 2
    if packing is None:
        if packed or audio.shape != visual.shape:
            raise ValueError(f"Shapes {tuple(visual.shape)} and {tuple(audio.shape)} need a packing. Without one both are (windows, T, D) and equal.")
        packing = Packing.uniform(visual.shape[0], visual.shape[1], device=visual.device)
    _check(visual, audio, mask, weights, packing, max_lag=options.max_lag)
    lead, dim = visual.shape[:-1], visual.shape[-1]
    v, a = visual.reshape(-1, dim).contiguous(), audio.reshape(-1, dim).contiguous()
    valid = torch.ones(len(v), dtype=torch.uint8, device=v.device) if mask is None else mask.reshape(-1).to(torch.uint8)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (v, a, *weights)):
        v, a = (F.normalize(x.float(), dim=-1).to(x.dtype) for x in (v, a))  # float32 under autocast too, which would else decide the type
        if packing.shared or len(a) != len(v):
            a, packing = a[packing.sound_row], packing.unshared()
        hidden = valid[:, None] == 0
        out = MatchFuse(*_MatchFuseFunction.apply(v.masked_fill(hidden, 0.0), a.masked_fill(hidden, 0.0), *weights, valid, packing, options))
    else:
        out = launch_forward(v, a, valid, weights, packing, options, write_z=False).result
    similarity = out.similarity
    if similarity is not None and not packed:
        similarity = similarity.view(lead[0], lead[1], lead[1])
    return out._replace(
        fused=out.fused.unflatten(0, lead), matched=out.matched.view(lead), row_match=out.row_match.view(lead),
        attended=out.attended.unflatten(0, lead), similarity=similarity,
    )  # fmt: skip


class Saved(NamedTuple):
    """What the gradient needs of a forward pass."""

    visual: Tensor
    audio: Tensor
    weights: FusionWeights
    z: Tensor
    attended: Tensor
    matched: Tensor
    row_match: Tensor
    log_sum: Tensor
    pairs: Tensor
    valid: Tensor
    packing: Packing
    options: Options
    tiling: Tiling


class _MatchFuseFunction(torch.autograd.Function):
    """On unit rows of picture and sound at the same moments, (rows, D) each, zero where not valid."""

    @staticmethod
    def forward(ctx, visual, audio, parts, scalars, bias, valid, packing, options):
        weights = FusionWeights(parts, scalars, bias)
        out = launch_forward(visual, audio, valid, weights, packing, options, write_z=True)
        result = out.result
        ctx.save_for_backward(visual, audio, *weights, out.z, result.attended, result.matched, result.row_match, out.log_sum, out.pairs, valid)
        ctx.packing, ctx.options = packing, options
        ctx.mark_non_differentiable(result.lag_valid, result.best_lag, *([] if result.similarity is None else [result.similarity]))
        return tuple(result)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_fused, d_matched, d_lag_profile, _lag_valid, _best_lag, d_row_match, d_attended, _similarity):
        visual, audio, parts, scalars, bias, *rest = ctx.saved_tensors
        tiling = ctx.options.tiling or Tiling.default_backward(
            capability_of(visual.device), dtype=visual.dtype, dim=visual.shape[1], outputs=parts.shape[1]
        )
        z, attended, matched, row_match, log_sum, pairs, valid = rest
        saved = Saved(
            visual, audio, FusionWeights(parts, scalars, bias), z, attended, matched, row_match, log_sum, pairs, valid,
            ctx.packing, ctx.options, tiling,
        )  # fmt: skip
        return *gradients(saved, d_fused, d_matched, d_lag_profile, d_row_match, d_attended), None, None, None


def _check(visual: Tensor, audio: Tensor, mask: Tensor | None, weights: FusionWeights, packing: Packing, *, max_lag: int) -> None:
    rows, dim = visual.shape[:-1].numel(), visual.shape[-1]
    if (
        rows != packing.rows
        or rows != len(packing.sound_row)
        or audio.shape[:-1].numel() < packing.sound_rows
        or audio.shape[-1] != dim
        or weights.parts.shape[2] != dim
    ):
        raise ValueError(
            f"Invalid shapes: visual {tuple(visual.shape)}, audio {tuple(audio.shape)}, weights {tuple(weights.parts.shape)}. "
            f"The packing has {packing.rows} rows of picture and {packing.sound_rows} of sound."
        )
    if max(rows, audio.shape[:-1].numel()) * max(dim, weights.parts.shape[1], 2 * max_lag + 1) >= 2**31:
        raise ValueError(f"{rows} rows of {dim} are more than the kernel's 32-bit offsets reach. Split the batch.")
    if mask is not None and mask.shape != visual.shape[:-1]:
        raise ValueError(f"Invalid mask {tuple(mask.shape)}. It must be {tuple(visual.shape[:-1])}: one flag a frame.")
    if visual.dtype not in (torch.float32, torch.float16, torch.bfloat16) or {audio.dtype, *(part.dtype for part in weights)} != {visual.dtype}:
        raise ValueError(
            f"Invalid types: visual {visual.dtype}, audio {audio.dtype}, weights {weights.parts.dtype}. Give one of float32, float16, bfloat16."
        )


def match_fuse_reference(
    visual: Tensor, audio: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor, *, tau: float, max_lag: int, packing: Packing
) -> MatchFuse:  # fmt: skip
    """The same in plain torch, by the model's own `match` and `fuse` on padded windows; weights as `Fusion.proj` has them.

    `visual` (rows, D), `audio` (sound rows, D), `mask` (rows,) or None. All in the inputs' type; S is flat, as the packing lays it out.
    """
    frame = torch.arange(packing.longest, device=visual.device)
    lengths = packing.offsets.diff()
    there = frame[None, :] < lengths[:, None]  # (windows, T)
    row = torch.where(there, packing.offsets[:-1, None] + frame[None, :], 0).long()
    valid = there if mask is None else there & mask[row]
    v, a = F.normalize(visual, dim=-1)[row], F.normalize(audio, dim=-1)[packing.sound_row.long()[row]]
    v, a = v.masked_fill(~valid[:, :, None], 0.0), a.masked_fill(~valid[:, :, None], 0.0)
    found = match(v, a, valid, tau=tau, max_lag=max_lag)
    fused = fuse(v, a, found, weight, bias)
    return MatchFuse(
        fused[there], found.matched[there], found.lag_profile, found.lag_valid, found.best_lag, found.row_match[there], found.attended[there],
        found.similarity[there[:, :, None] & there[:, None, :]],
    )  # fmt: skip


def argument_types(dtype: str) -> dict[str, str]:
    """The forward kernel's run-time arguments for inputs of `dtype` ("fp16", "bf16", "fp32"), to compile it ahead of time."""
    typed = ("V", "A", "W", "W_scalar", "bias", "fused", "attended", "z")
    single = ("matched", "row_match", "band", "log_sum", "S")
    return {
        **{f"{name}_ptr": f"*{dtype}" for name in typed}, **{f"{name}_ptr": "*fp32" for name in single},
        "window_ptr": "*i32", "sound_row_ptr": "*i32", "offsets_ptr": "*i32", "valid_ptr": "*u8", "square_offsets_ptr": "*i64",
        "rows": "i32", "score_scale": "fp32",
    }  # fmt: skip
