"""Where the sound is a voice: streaming speech activity, one flag per video frame.

Sound counts as voiced where, over 50 ms, it is loud enough, stands out from the noise floor around it, is periodic with a voice's pitch, and is
not a single tone. The periodicity is the autocorrelation of the windowed sound over that of the window (Boersma, "Accurate short-term analysis of
the fundamental frequency", 1993). Steady sounds - noise, hum, a tone - raise the floor to their own level (a
periodic one is taken for a voice for its first 1.5 s). Voiced stretches are widened by a
hangover, which takes in the unvoiced sounds around them. Singing and much music count as speech: nothing here tells them apart.
"""

import numpy as np
from numpy.typing import NDArray

from dissonance.config import SpeechConfig

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 640  # of one video frame
HOP = 320  # two decisions a video frame
WINDOW = 800
FFT = 2048
PITCH_HZ = (60, 400)
PITCH_BAND_HZ = (80, 2500)  # where periodicity is looked for
SPEECH_BAND_HZ = (150, 4000)  # where level is measured
MIN_PERIODICITY = 0.55
MAX_TONE_SHARE = 0.96  # of the power within a window's resolution of the strongest frequency
TONE_BINS = 6  # half the main lobe of a 50 ms Hann window, in bins of the transform
FLOOR_PERCENTILE = 10
FLOOR_PAST, FLOOR_AHEAD = 75, 50  # hops: 1.5 s and 1 s
LEAST_VOICED, OF_NEIGHBOURS = 3, 2  # voiced hops among a hop and its neighbours on either side
HANGOVER_BEFORE, HANGOVER_AFTER = 5, 10  # hops
BLOCK = 50  # hops analysed together, always the same ones, so that chunking cannot change a rounding
_QUIET_DB = -120.0


class SpeechActivity:
    """Flags come out as they become certain: at most 2.5 s after their sound went in. They do not depend on how the sound is cut into chunks."""

    def __init__(self, config: SpeechConfig) -> None:
        self._config = config
        self._window = np.hanning(WINDOW + 1)[:-1]
        frequencies = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE_HZ)
        self._pitch_band = (frequencies >= PITCH_BAND_HZ[0]) & (frequencies <= PITCH_BAND_HZ[1])
        self._speech_band = (frequencies >= SPEECH_BAND_HZ[0]) & (frequencies <= SPEECH_BAND_HZ[1])
        self._lift = np.square(frequencies / 1000)  # 6 dB an octave, a voice's fall: or the fundamental of a high one would pass for a tone
        self._lags = slice(SAMPLE_RATE_HZ // PITCH_HZ[1], SAMPLE_RATE_HZ // PITCH_HZ[0] + 1)
        correlation = np.fft.irfft(np.abs(np.fft.rfft(self._window, FFT)) ** 2)
        self._window_correlation = correlation[self._lags] / correlation[0]
        lead = WINDOW // 2 - HOP // 2  # hop i is judged by the window around its middle
        self._held: NDArray[np.float32] = np.zeros(lead, np.float32)
        self._taken = 0
        self._levels: list[float] = []  # dB, of the hops from `_first` on
        self._periodic: list[bool] = []
        self._first = 0
        self._voiced: list[bool] = []  # every hop's verdict from `_voiced_first` on
        self._voiced_first = 0
        self._given = 0  # video frames

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(samples,) to (frames,), perhaps none."""
        self._taken += len(samples)
        self._held = np.concatenate([self._held, samples])
        while len(self._held) >= (BLOCK - 1) * HOP + WINDOW:
            self._analyse(BLOCK)
        self._judge(self._first + len(self._levels) - FLOOR_AHEAD)
        return self._flags(self._voiced_first + len(self._voiced) - OF_NEIGHBOURS - HANGOVER_BEFORE)

    def finish(self) -> NDArray[np.bool_]:
        """The remaining flags, (frames,): ceil(samples / 640) have then been given in all."""
        frames = -(-self._taken // FRAME_SAMPLES)
        left = 2 * frames - (self._first + len(self._levels))
        while left > 0:
            count = min(left, BLOCK)
            needed = (count - 1) * HOP + WINDOW
            self._held = np.pad(self._held, (0, max(0, needed - len(self._held))))
            self._analyse(count)
            left -= count
        self._judge(2 * frames)
        return self._flags(2 * frames)

    def _analyse(self, count: int) -> None:
        stretch = self._held[: (count - 1) * HOP + WINDOW].astype(np.float64)
        self._held = self._held[count * HOP :]
        frames = np.lib.stride_tricks.sliding_window_view(stretch, WINDOW)[::HOP]
        spectrum = np.fft.rfft(frames * self._window, FFT, axis=-1)
        power = spectrum.real**2 + spectrum.imag**2
        in_band = np.where(self._speech_band, power, 0.0)
        total = in_band.sum(-1)
        level = 10 * np.log10(2 * total / (FFT * np.square(self._window).sum()) + 10 ** (_QUIET_DB / 10))
        lifted = in_band * self._lift
        strongest = lifted.argmax(-1)
        sums = np.cumsum(np.pad(lifted, ((0, 0), (TONE_BINS + 1, TONE_BINS))), axis=-1)
        rows = np.arange(count)
        tone_share = (sums[rows, strongest + 2 * TONE_BINS + 1] - sums[rows, strongest]) / np.maximum(lifted.sum(-1), 1e-20)
        correlation = np.fft.irfft(np.where(self._pitch_band, power, 0.0), axis=-1)
        periodicity = (correlation[:, self._lags] / np.maximum(correlation[:, :1], 1e-20) / self._window_correlation).max(-1)
        self._levels += level.tolist()
        self._periodic += ((periodicity >= MIN_PERIODICITY) & (tone_share <= MAX_TONE_SHARE)).tolist()

    def _judge(self, until: int) -> None:
        """Decide on the hops before `until`, whose surroundings are known."""
        levels = np.array(self._levels)
        for hop in range(self._voiced_first + len(self._voiced), until):
            here = hop - self._first
            level = levels[here]
            voiced = bool(self._periodic[here]) and level >= self._config.min_level_dbfs
            if voiced:
                around = levels[max(0, here - FLOOR_PAST) : here + FLOOR_AHEAD + 1]
                voiced = bool(level >= np.percentile(around, FLOOR_PERCENTILE) + self._config.min_snr_db)
            self._voiced.append(voiced)
        spare = max(0, self._voiced_first + len(self._voiced) - FLOOR_PAST - self._first)
        self._first += spare
        del self._levels[:spare], self._periodic[:spare]

    def _flags(self, until: int) -> NDArray[np.bool_]:
        """Flags of the video frames that end at or before hop `until`."""
        frames = max(0, until // 2 - self._given)
        if frames == 0:
            return np.zeros(0, bool)
        begin, end = 2 * self._given, 2 * (self._given + frames)
        margin = HANGOVER_AFTER + OF_NEIGHBOURS  # before; HANGOVER_BEFORE + OF_NEIGHBOURS after
        voiced = np.zeros(end - begin + margin + HANGOVER_BEFORE + OF_NEIGHBOURS, np.int64)
        known = np.array(self._voiced, np.int64)
        low = begin - margin
        source = slice(max(0, low - self._voiced_first), max(0, low - self._voiced_first) + len(voiced) - max(0, self._voiced_first - low))
        part = known[source]
        offset = max(0, self._voiced_first - low)
        voiced[offset : offset + len(part)] = part
        counts = np.convolve(voiced, np.ones(2 * OF_NEIGHBOURS + 1, np.int64), "valid")
        steady = (counts >= LEAST_VOICED).astype(np.int64)  # from hop `begin` - HANGOVER_AFTER on
        active = np.convolve(steady, np.ones(HANGOVER_BEFORE + HANGOVER_AFTER + 1, np.int64), "valid") > 0
        self._given += frames
        spare = max(0, 2 * self._given - margin - self._voiced_first)
        self._voiced_first += spare
        del self._voiced[:spare]
        return np.asarray(active.reshape(-1, 2).any(-1), bool)
