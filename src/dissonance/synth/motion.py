"""How a head moves: pose, blinks and gaze over the frames of a clip."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dissonance.synth.config import FRAMES_PER_SECOND

Track = NDArray[np.float32]  # one value a frame


@dataclass(frozen=True)
class Motion:
    """Tracks of float32 (frames,). Turns in radians, shifts in face units, `zoom` is a factor near 1, `lid` 1 open to 0 shut."""

    yaw: Track
    pitch: Track
    roll: Track
    shift_x: Track
    shift_y: Track
    zoom: Track
    lid: Track
    gaze_x: Track
    gaze_y: Track


def move(rng: np.random.Generator, frames: int, emphasis: Track) -> Motion:
    """Random smooth movement. `emphasis` (frames,), 0 to 1, is how loudly the person speaks: heads nod with it a little."""
    yaw = rng.uniform(-0.22, 0.22) + _drift(rng, frames, 0.1)
    pitch = rng.uniform(-0.08, 0.1) + _drift(rng, frames, 0.05)
    slow = np.convolve(np.pad(emphasis, 6, mode="edge"), np.hanning(15)[1:-1] / np.hanning(15).sum(), mode="valid")
    return Motion(
        yaw=_track(yaw),
        pitch=_track(pitch + 0.05 * slow),
        roll=_track(rng.uniform(-0.07, 0.07) + _drift(rng, frames, 0.03)),
        shift_x=_track(_drift(rng, frames, 0.06)),
        shift_y=_track(_drift(rng, frames, 0.03) + 0.05 * slow),
        zoom=_track(1 + _drift(rng, frames, 0.015)),
        lid=_blinks(rng, frames),
        gaze_x=_in_steps(0.03 * np.clip(-2 * yaw, -1, 1) + _saccades(rng, frames, 0.025)),
        gaze_y=_in_steps(_saccades(rng, frames, 0.01)),
    )


def _in_steps(gaze: NDArray[np.float64]) -> Track:
    """Eyes follow a turning head in small jumps; between them they need not be drawn again."""
    return _track(np.rint(gaze / 0.008) * 0.008)


def _track(values: NDArray[np.float64]) -> Track:
    return np.asarray(values, dtype=np.float32)


def _drift(rng: np.random.Generator, frames: int, amount: float) -> NDArray[np.float64]:
    """A sum of four slow sinusoids, of deviation `amount`."""
    times = np.arange(frames)[:, None] / FRAMES_PER_SECOND
    waves = np.sin(2 * np.pi * (rng.uniform(0.05, 0.7, 4) * times + rng.uniform(0, 1, 4))) * rng.uniform(0.4, 1.0, 4)
    return np.asarray(waves.sum(axis=1) * (amount / 1.05))


def _blinks(rng: np.random.Generator, frames: int) -> Track:
    """A blink every 1.5 to 5.5 s: shut within three frames, open within five more."""
    lid = np.full(frames, rng.uniform(0.88, 1.0))
    shape = np.array([0.6, 0.15, 0.0, 0.1, 0.4, 0.7, 0.9])
    at = int(rng.uniform(-0.2, 4.0) * FRAMES_PER_SECOND)
    while at < frames:
        first, last = max(0, at), min(frames, at + len(shape))
        if last > first:
            lid[first:last] *= shape[first - at : last - at]
        at += int(rng.uniform(1.5, 5.5) * FRAMES_PER_SECOND)
    return _track(lid)


def _saccades(rng: np.random.Generator, frames: int, amount: float) -> NDArray[np.float64]:
    """Gaze that rests, then jumps, about once a second."""
    jumps = rng.random(frames) < 1.0 / FRAMES_PER_SECOND
    targets = rng.normal(0, amount, frames)
    held = np.maximum.accumulate(np.where(jumps, np.arange(frames), 0))
    return np.asarray(np.clip(targets[held], -2 * amount, 2 * amount))
