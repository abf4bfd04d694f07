"""What is said: a stream of syllables as movements of the mouth and of the sound sources, on one clock.

Picture and sound of a clip are both made from an `Utterance`, so they agree to the millisecond.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dissonance.synth.identity import Voice

CONTROL_RATE_HZ = 1000
CONTROL_PER_FRAME = 40  # control samples in a video frame of 1/25 s


class _Phone(NamedTuple):
    """A target of the articulators. Formants in Hz for a man's tract; amplitudes relative to an open vowel."""

    openness: float  # 0 closed to 1 wide open
    width: float  # -1 drawn together to 1 spread
    rounding: float
    f1: float
    f2: float
    f3: float
    voiced: float
    noise: float = 0.0
    noise_hz: float = 3000.0
    noise_width_hz: float = 1500.0


_REST = _Phone(0.0, 0.0, 0.0, 500, 1500, 2500, 0.0)
_VOWELS: tuple[_Phone, ...] = (
    _Phone(1.0, 0.25, 0.0, 760, 1250, 2550, 1.0),  # a
    _Phone(0.85, 0.6, 0.0, 680, 1700, 2500, 0.92),  # ae
    _Phone(0.58, 0.7, 0.0, 520, 1850, 2550, 0.74),  # e
    _Phone(0.26, 1.0, 0.0, 290, 2250, 3000, 0.5),  # i
    _Phone(0.62, -0.2, 0.75, 480, 880, 2450, 0.78),  # o
    _Phone(0.24, -0.4, 1.0, 320, 820, 2300, 0.48),  # u
    _Phone(0.45, 0.0, 0.1, 560, 1350, 2450, 0.66),  # schwa
)
# The other voices' vowels: formants of the men in Hillenbrand et al. 1995, "Acoustic characteristics of American English vowels".
_CEL_VOWELS: tuple[_Phone, ...] = (
    _Phone(1.0, 0.1, 0.1, 768, 1333, 2522, 1.0),  # hod
    _Phone(0.8, 0.7, 0.0, 588, 1952, 2601, 0.9),  # had
    _Phone(0.6, 0.55, 0.0, 580, 1799, 2605, 0.8),  # head
    _Phone(0.34, 0.8, 0.0, 427, 2034, 2684, 0.56),  # hid
    _Phone(0.22, 0.9, 0.0, 342, 2322, 3000, 0.46),  # heed
    _Phone(0.72, -0.3, 0.6, 652, 997, 2538, 0.85),  # hawed
    _Phone(0.3, -0.3, 0.85, 469, 1122, 2434, 0.54),  # hood
    _Phone(0.2, -0.5, 1.0, 378, 997, 2343, 0.44),  # who'd
    _Phone(0.5, 0.0, 0.1, 623, 1200, 2550, 0.72),  # hud
    _Phone(0.36, -0.1, 0.45, 474, 1379, 1710, 0.6),  # heard
)
_CEL_NOISE = 0.78  # of the frequencies of their fricatives and bursts
# A consonant is one or two targets with their durations in ms: a stop is a closure, then a burst.
_CONSONANTS: tuple[tuple[tuple[_Phone, float], ...], ...] = (
    ((_Phone(0.0, 0.0, 0.1, 250, 1100, 2200, 0.22), 95.0),),  # m
    ((_Phone(0.0, 0.0, 0.1, 250, 900, 2200, 0.06), 90.0), (_Phone(0.2, 0.0, 0.1, 400, 1100, 2300, 0.3, 0.1, 1000, 1200), 20.0)),  # b
    ((_Phone(0.0, 0.0, 0.1, 400, 1100, 2300, 0.0), 100.0), (_Phone(0.2, 0.0, 0.1, 500, 1100, 2300, 0.1, 0.25, 1200, 1500), 30.0)),  # p
    ((_Phone(0.07, 0.15, 0.0, 350, 1200, 2300, 0.03, 0.07, 5500, 4000), 100.0),),  # f
    ((_Phone(0.15, 0.5, 0.0, 350, 1700, 2600, 0.0, 0.22, 5800, 1300), 100.0),),  # s
    ((_Phone(0.2, -0.3, 0.55, 350, 1800, 2500, 0.0, 0.24, 3300, 1100), 105.0),),  # sh
    ((_Phone(0.16, 0.3, 0.0, 350, 1700, 2600, 0.0), 65.0), (_Phone(0.24, 0.3, 0.0, 400, 1700, 2600, 0.1, 0.24, 4300, 2000), 25.0)),  # t
    ((_Phone(0.28, 0.1, 0.0, 350, 1500, 2300, 0.0), 65.0), (_Phone(0.34, 0.1, 0.0, 400, 1600, 2300, 0.1, 0.24, 1900, 1000), 30.0)),  # k
    ((_Phone(0.3, 0.25, 0.0, 350, 1250, 2700, 0.35), 70.0),),  # l
    ((_Phone(0.2, 0.2, 0.0, 280, 1500, 2500, 0.24), 75.0),),  # n
    ((_Phone(0.1, -0.4, 1.0, 310, 700, 2200, 0.28), 80.0),),  # w
    (),  # a vowel without onset
)


@dataclass(frozen=True)
class Utterance:
    """Speech as control tracks of 1,000 samples a second, float32 (n,); control sample 0 is at `start_s` on the clip's clock."""

    start_s: float
    openness: NDArray[np.float32]
    width: NDArray[np.float32]
    rounding: NDArray[np.float32]
    formants_hz: NDArray[np.float32]  # (n, 3), for a formant scale of 1
    voiced: NDArray[np.float32]
    f0_hz: NDArray[np.float32]
    noise: NDArray[np.float32]
    noise_hz: NDArray[np.float32]
    noise_width_hz: NDArray[np.float32]
    voice: Voice

    def at_frames(self, track: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
        """`track` at the instants k / 25 s of video frames 0 to `frames` - 1."""
        first = round(-self.start_s * CONTROL_RATE_HZ)
        return track[first : first + frames * CONTROL_PER_FRAME : CONTROL_PER_FRAME]


def speak(rng: np.random.Generator, voice: Voice, *, start_s: float, end_s: float) -> Utterance:
    """Say random syllables in phrases with pauses between them, over [start_s, end_s] of the clip's clock."""
    samples = round((end_s - start_s) * CONTROL_RATE_HZ) + 1
    targets: list[tuple[float, ...]] = []
    lengths: list[int] = []
    said = 0

    def say(phone: _Phone, milliseconds: float, effort: float, pitch: float) -> None:
        nonlocal said
        length = max(8, round(milliseconds * float(rng.uniform(0.85, 1.2))))
        reach = 0.72 + 0.28 * effort
        scaled = phone._replace(openness=phone.openness * reach, voiced=phone.voiced * effort, noise=phone.noise * effort)
        targets.append((*scaled, pitch))
        lengths.append(length)
        said += length

    cel = voice.model == "cel"
    vowels, fall = (_CEL_VOWELS, -0.12) if cel else (_VOWELS, 0.16)  # of the pitch a syllable: the others' phrases rise
    vowel_ms = 1000.0 / voice.syllables_per_s - 85.0
    # Begin anywhere within a phrase, so that clips neither all begin with silence nor all with sound.
    left_in_phrase, pitch = int(rng.integers(0, 6)), float(rng.uniform(-0.3, 0.6))
    while said < samples:
        if left_in_phrase <= 0:
            say(_REST, float(rng.uniform(180, 620)), 1.0, 0.0)
            left_in_phrase, pitch = (int(rng.integers(2, 7)), -0.4) if cel else (int(rng.integers(3, 9)), 0.6)
        effort = float(rng.uniform(0.6, 1.0))
        accent = pitch + float(rng.normal(0, 0.25))
        for phone, milliseconds in _CONSONANTS[rng.integers(len(_CONSONANTS))]:
            say(phone, milliseconds, effort, accent)
        say(vowels[rng.integers(len(vowels))], vowel_ms, effort, accent)
        if rng.random() < 0.25:
            for phone, milliseconds in _CONSONANTS[rng.integers(len(_CONSONANTS))]:
                say(phone, milliseconds, effort, accent)
        left_in_phrase -= 1
        pitch -= fall
    steps = np.repeat(np.asarray(targets, dtype=np.float32), lengths, axis=0)[:samples]
    openness, width, rounding = (_smooth(steps[:, column], 75) for column in range(3))
    formants = np.stack([_smooth(steps[:, column], 55) for column in range(3, 6)], axis=1)
    octaves = voice.f0_span * _smooth(steps[:, 10], 160)
    if voice.jitter:
        octaves = octaves + 4 * voice.jitter * _smooth(rng.standard_normal(samples, dtype=np.float32), 12)  # the window leaves a quarter
    return Utterance(
        start_s=start_s,
        openness=openness,
        width=width,
        rounding=rounding,
        formants_hz=formants,
        voiced=_smooth(steps[:, 6], 35),
        f0_hz=(voice.f0_hz * 2.0**octaves).astype(np.float32),
        noise=_smooth(steps[:, 7], 25),
        noise_hz=_smooth(steps[:, 8], 35) * np.float32(_CEL_NOISE if cel else 1.0),
        noise_width_hz=_smooth(steps[:, 9], 35),
        voice=voice,
    )


def _smooth(track: NDArray[np.float32], milliseconds: int) -> NDArray[np.float32]:
    """Convolve with a symmetric Hann window (no delay), holding the first and last value beyond the ends."""
    size = milliseconds // 2 * 2 + 1
    window = np.hanning(size + 2)[1:-1]
    padded = np.pad(track, size // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid").astype(np.float32)
