"""Reading clips back, with nothing of ours but the ground truth of where the mouth is."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class Decoded:
    """rgb (frames, height, width, 3), their times, and mono sound from the clip's start."""

    rgb: np.ndarray
    times_s: np.ndarray
    sound: np.ndarray
    rate: int

    def loudness(self) -> np.ndarray:
        """RMS of the sound within 20 ms of every frame's time, in dB."""
        half = self.rate // 50
        padded = np.pad(self.sound, (half, 2 * half + self.rate))
        centres = np.rint(self.times_s * self.rate).astype(int)
        return np.array([10 * np.log10(np.mean(padded[at : at + 2 * half] ** 2) + 1e-7) for at in centres])

    def darkness(self, mouths: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """How dark the darkest part is just below the middle of the lips: an open mouth is a dark hole with teeth above. One value a frame."""
        values = []
        for image, (x, y), (x0, _, x1, _) in zip(self.rgb, mouths, boxes, strict=True):
            unit = (x1 - x0) / 2
            rows = slice(round(y), round(y + 0.3 * unit))
            columns = slice(round(x - 0.18 * unit), round(x + 0.18 * unit))
            values.append(-float(np.percentile(image[rows, columns].mean(axis=2), 15)))
        return np.array(values)


def decode(path: Path) -> Decoded:
    with av.open(str(path)) as container:
        pictures = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        sounds = [(round(float(f.pts * f.time_base) * rate), f.to_ndarray()[0]) for f in container.decode(audio=0)]
    sound = np.zeros(sounds[-1][0] + len(sounds[-1][1]))
    for start, samples in sounds:
        sound[max(0, start) : start + len(samples)] = samples[max(0, -start) :]
    return Decoded(np.stack([p for _, p in pictures]), np.array([t for t, _ in pictures]), sound, rate)


def lag_profile(mouth: np.ndarray, sound: np.ndarray, max_lag: int) -> np.ndarray:
    """Correlation of mouth[i] with sound[i + d] for d in -max_lag..max_lag: a peak at d > 0 means that the sound comes later."""
    profile = []
    for d in range(-max_lag, max_lag + 1):
        a = mouth[max(0, -d) : len(mouth) - max(0, d)]
        b = sound[max(0, d) : len(sound) - max(0, -d)]
        profile.append(float(np.corrcoef(a, b)[0, 1]))
    return np.array(profile)
