"""One pass over a batch: encode each picture and each sound once, pair them, ask the heads, and what that costs."""

import torch
from torch import Tensor

from dissonance.model.head import Head
from dissonance.model.matching import match
from dissonance.model.network import AudioVisualNetwork
from dissonance.training.batches import Batch, Glimpses
from dissonance.training.losses import Glimpsed, Logits, LossTerms, MultiTaskLoss
from dissonance.training.pairs import MIN_SHIFT_FRAMES, PairedWindows, StreamWindows, draw_cross_pairs


def pixels_of(crops: Tensor) -> Tensor:
    """(..., S, S, 3) uint8 -> (..., 3, S, S) float32 in [0, 1]."""
    return crops.movedim(-1, -3).float() / 255.0


def forward(network: AudioVisualNetwork, batch: Batch, *, fused: bool, kernel: bool = False) -> tuple[PairedWindows, Logits]:
    """Aligned features and the heads' logits of every pair; `fused` off leaves the fused head out. `kernel`: see `fused_features`."""
    head = network.head
    sound_mask = batch.mask[batch.picture]
    v = head.align.picture(network.encode_visual(pixels_of(batch.pixels)), batch.mask)
    a = head.align.sound(network.audio(batch.mel, sound_mask), sound_mask)
    logit_fused = None
    if fused:
        seen = v[batch.picture]
        logit_fused = head.tail.fused(fused_features(head, seen, a, sound_mask, kernel=kernel), sound_mask)
    own = batch.windows
    pairs = PairedWindows(
        pictures=StreamWindows(features=v, valid=batch.mask, clip=batch.clip[:own], identity=batch.identity[:own], start_frame=batch.picture_start),
        sounds=StreamWindows(features=a, valid=sound_mask, clip=batch.clip, identity=batch.identity, start_frame=batch.sound_start),
        speech=batch.speech,
        picture=batch.picture,
        sound=torch.arange(len(batch.picture), device=batch.picture.device),
        picture_fake=batch.picture_fake,
        sound_fake=batch.sound_fake,
        mismatched=batch.mismatched,
        true_lag=batch.true_lag,
    )
    return pairs, Logits(visual=head.tail.visual(v, batch.mask)[batch.picture], audio=head.tail.audio(a, sound_mask), fused=logit_fused)


def fused_features(head: Head, visual: Tensor, audio: Tensor, mask: Tensor, *, kernel: bool) -> Tensor:
    """g (pairs, T, H) of aligned v and a (pairs, T, D), by the model's own functions or by the Triton kernel with the same numbers and gradients.

    The kernel computes in autocast's type where that is on.
    """
    if not kernel:
        fused: Tensor = head.fusion(visual, audio, match(visual, audio, mask, tau=head.tau, max_lag=head.max_lag))
        return fused
    from dissonance.kernels.match_fuse import Options, match_fuse
    from dissonance.kernels.weights import FusionWeights

    device = visual.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else visual.dtype
    weights = FusionWeights.pack(head.fusion.proj.weight, head.fusion.proj.bias, dim=visual.shape[2], dtype=dtype)
    return match_fuse(visual.to(dtype), audio.to(dtype), mask, weights, Options(head.tau, head.max_lag)).fused


def glimpse(network: AudioVisualNetwork, glimpses: Glimpses) -> Glimpsed:
    """What the visual and the audio head say of glimpses."""
    seen, head = glimpses.mask[:, : glimpses.pixels.shape[1]], network.head
    v = head.align.picture(network.encode_visual(pixels_of(glimpses.pixels)), seen)
    a = head.align.sound(network.audio(glimpses.mel, glimpses.mask), glimpses.mask)
    return Glimpsed(head.tail.visual(v, seen), head.tail.audio(a, glimpses.mask), glimpses.picture_fake, glimpses.sound_fake)


def cost(
    network: AudioVisualNetwork, loss: MultiTaskLoss, batch: Batch, *, fused: bool, precision: torch.dtype, seed: int, kernel: bool = False
) -> LossTerms:
    """The loss of a batch; `precision` bfloat16 is autocast, the losses stay in float32. `seed` draws the cross pairs."""
    with torch.autocast(batch.pixels.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        pairs, logits = forward(network, batch, fused=fused, kernel=kernel)
        glimpsed = None if batch.glimpses is None else glimpse(network, batch.glimpses)
    max_shift = max(network.head.max_lag, MIN_SHIFT_FRAMES)  # a model may look at no lags at all
    pairs = draw_cross_pairs(pairs, max_shift=max_shift, generator=torch.Generator().manual_seed(seed))
    terms: LossTerms = loss(pairs, logits, glimpsed)
    return terms
