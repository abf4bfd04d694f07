"""Pairs of pictures and sounds: what the losses look at.

A batch holds V picture windows and A sound windows, each encoded once, and P pairs that say which picture goes with which sound. In the plain
case V = A = P. Pairing each picture with K cheap variants of sound is V = B, A = P = B * K: timing forgeries then share picture and sound with
real clips by construction, and only the match tells them apart.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNKNOWN_ORIGIN = -1  # as `clip`: it may be of any clip, so it is never anyone's negative
NO_LAG = 1_000_000  # as `true_lag`: there is none (streams of different moments) or nobody knows it
MIN_SHIFT_FRAMES = 2  # streams of one clip that are closer than this count as together: 40 ms is within what players and cameras do


@dataclass(frozen=True, kw_only=True)
class StreamWindows:
    """N windows of one stream, as the alignment gives them, and where they come from.

    `clip` names what was recorded, not the file: a forgery that keeps the sound of a real clip (re-lipped, revoiced in sync) has that clip's number,
    or it would be taken for a mismatch of the real clip's picture.
    """

    features: Tensor  # (N, T, D) float, unit rows; padding may hold anything
    valid: Tensor  # (N, T) bool, False = padding
    clip: Tensor  # (N,) int64, or UNKNOWN_ORIGIN
    identity: Tensor  # (N,) int64: who is seen or heard
    start_frame: Tensor  # (N,) int64: of the window, on the clip's clock at 25 fps

    def __post_init__(self) -> None:
        windows, frames = self.features.shape[:2]
        _require("valid", self.valid, (windows, frames))
        for name in ("clip", "identity", "start_frame"):
            _require(name, getattr(self, name), (windows,))


@dataclass(frozen=True, kw_only=True)
class PairedWindows:
    """P pairs of the pictures (V, T, D) and the sounds (A, T, D), with their labels. A pair with all three False is real, hence in sync.

    Mismatches of real windows, made while training, are timing forgeries without an artefact. There are two kinds: a pair that is `mismatched` is put
    to the fused head, and to no other, as a forgery; `cross` is cheaper, for the match alone.
    """

    pictures: StreamWindows
    sounds: StreamWindows
    speech: Tensor  # (A, T) bool: a voice is heard
    picture: Tensor  # (P,) int64: which picture
    sound: Tensor  # (P,) int64: which sound
    picture_fake: Tensor  # (P,) bool
    sound_fake: Tensor  # (P,) bool
    mismatched: Tensor  # (P,) bool: put together from different moments: neither may be fake, but they do not belong together
    true_lag: Tensor  # (P,) int64 frames, above 0: the sound comes later; 0 where in sync, NO_LAG where there is none
    cross: Tensor | None = None  # (C, 3) int64: picture, sound and shift d of mismatches made from real windows: frame i meets i + d

    def __post_init__(self) -> None:
        if self.pictures.features.shape[1:] != self.sounds.features.shape[1:]:
            raise ValueError(
                f"pictures {tuple(self.pictures.features.shape)} and sounds {tuple(self.sounds.features.shape)} differ in frames or width"
            )
        _require("speech", self.speech, tuple(self.sounds.valid.shape))
        for name in ("picture", "sound", "picture_fake", "sound_fake", "mismatched", "true_lag"):
            _require(name, getattr(self, name), (self.picture.shape[0],))
        if self.cross is not None:
            _require("cross", self.cross, (self.cross.shape[0], 3))

    @property
    def real(self) -> Tensor:
        """(P,) bool: both modalities are real, and belong together."""
        return ~(self.picture_fake | self.sound_fake | self.mismatched)

    @property
    def valid(self) -> Tensor:
        """(P, T) bool: the frame is there in both streams."""
        return self.pictures.valid[self.picture] & self.sounds.valid[self.sound]

    @property
    def spoken(self) -> Tensor:
        """(P, T) bool: the frame is there in both streams, and a voice is heard."""
        return self.valid & self.speech[self.sound]


def _require(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor of another shape would broadcast and train on nonsense."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")


def maybe_together(pictures: StreamWindows, sounds: StreamWindows) -> Tensor:
    """(V, A) bool: picture and sound are, or may be, of the same moment of the same clip, so that they are no mismatch."""
    same_clip = pictures.clip[:, None] == sounds.clip[None, :]
    near = (pictures.start_frame[:, None] - sounds.start_frame[None, :]).abs() < MIN_SHIFT_FRAMES
    unknown = (pictures.clip == UNKNOWN_ORIGIN)[:, None] | (sounds.clip == UNKNOWN_ORIGIN)[None, :]
    return (same_clip & near) | unknown


def draw_cross_pairs(batch: PairedWindows, *, max_shift: int, generator: torch.Generator) -> PairedWindows:
    """The batch with two mismatches for each real pair: its picture with a sound of a real pair of another clip (where the batch has one), and with
    its own sound, 2 to `max_shift` frames earlier or later. `generator` is on the CPU.
    """
    if max_shift < MIN_SHIFT_FRAMES:
        raise ValueError(f"max_shift {max_shift} is below {MIN_SHIFT_FRAMES} frames")
    device = batch.picture.device
    real = batch.real.nonzero()[:, 0]
    picture, sound = batch.picture[real], batch.sound[real]
    seen, heard = batch.pictures.clip[picture], batch.sounds.clip[sound]
    other = (seen[:, None] != heard[None, :]) & (seen != UNKNOWN_ORIGIN)[:, None] & (heard != UNKNOWN_ORIGIN)[None, :]
    lots = torch.rand(other.shape, generator=generator).to(device).masked_fill(~other, -1.0)
    has_other = other.any(dim=1)
    across = sound[lots.argmax(dim=1)] if len(real) else sound
    sign = 2 * torch.randint(0, 2, picture.shape, generator=generator) - 1
    shift = (sign * torch.randint(MIN_SHIFT_FRAMES, max_shift + 1, picture.shape, generator=generator)).to(device)
    cross = torch.stack(
        [torch.cat([picture[has_other], picture]), torch.cat([across[has_other], sound]), torch.cat([shift[has_other] * 0, shift])], 1
    )
    return replace(batch, cross=cross)
