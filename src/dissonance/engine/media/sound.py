"""A file's sound as windows ask for it: pulled when needed, a bounded stretch of it kept."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import MelSpec
from dissonance.config import SpeechConfig
from dissonance.engine.media.log_mel import LogMelStream, normalise
from dissonance.engine.media.speech import SpeechActivity
from dissonance.mel import SAMPLE_RATE_HZ, SILENCE

MEL_FRAMES = 4  # a video frame
_PULL_SAMPLES = SAMPLE_RATE_HZ  # analysed together
_EVERYTHING = 1 << 40  # frames: more than any sound has


@dataclass(frozen=True)
class SoundSummary:
    """What is known when the sound was read to its end."""

    duration_s: float  # from the origin to the sound's end
    speech_fraction: float  # of its video frames


class SoundTrack:
    """Mel and speech flags by video frame. Sound is read as far as it is asked for, and some seconds more (speech.py looks ahead).

    The last `history_frames` before the end of the latest request are kept; asking for older ones raises ValueError, a bug of the caller.
    Raises MediaError as the reader does.
    """

    def __init__(self, reader: Iterable[NDArray[np.float32]], *, mel: MelSpec, speech: SpeechConfig, history_frames: int = 1500) -> None:
        self._chunks: Iterator[NDArray[np.float32]] = iter(reader)
        self._log_mel = LogMelStream(mel.bins)
        self._activity = SpeechActivity(speech)
        self._history = history_frames
        self._mel = _History(np.zeros((0, mel.bins), np.float32))
        self._speech = _History(np.zeros(0, bool))
        self._asked = 0  # video frames before this one have been asked for
        self._samples = 0
        self._speaking = 0  # frames with speech, of all so far
        self._ended = False

    def mel(self, first_frame: int, frames: int) -> NDArray[np.float32]:
        """(bins, 4 frames), normalised over these frames; silence beyond the sound's end."""
        begin, end = self._request(first_frame, frames)
        while not self._ended and self._mel.end < MEL_FRAMES * end:
            self._pull()
        return np.ascontiguousarray(normalise(self._mel.take(MEL_FRAMES * begin, MEL_FRAMES * end, missing=SILENCE)).T)

    def speech(self, first_frame: int, frames: int) -> NDArray[np.bool_]:
        """(frames,), False beyond the sound's end."""
        begin, end = self._request(first_frame, frames)
        while not self._ended and self._speech.end < end:
            self._pull()
        return self._speech.take(begin, end, missing=False)

    def finish(self) -> SoundSummary:
        """Read to the end."""
        while not self._ended:
            self._asked = max(self._asked, self._speech.end)
            self._pull()
        self._asked = max(self._asked, self._speech.end)
        return SoundSummary(duration_s=self._samples / SAMPLE_RATE_HZ, speech_fraction=self._speaking / max(1, self._speech.end))

    def whole(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """All of it at once: log-mel (4 F, bins), log10 and not normalised, and speech (F,), from frame 0 to the sound's end.

        Raises ValueError, a bug of the caller, where something was asked for before.
        """
        if self._ended or self._asked or self._samples:
            raise ValueError("whole() comes first: what was asked for before it may be gone")
        self._history = _EVERYTHING
        self.finish()
        frames = self._speech.end
        return self._mel.take(0, MEL_FRAMES * frames, missing=SILENCE), self._speech.take(0, frames, missing=False)

    def _request(self, first_frame: int, frames: int) -> tuple[int, int]:
        if first_frame < 0 or frames < 1:
            raise ValueError(f"no such frames: {frames} from {first_frame}")
        asked = max(self._asked, first_frame + frames)
        if first_frame < asked - self._history:
            raise ValueError(f"frame {first_frame} was asked for beside frame {asked - 1}, and only {self._history} frames are kept")
        self._asked = asked
        return first_frame, first_frame + frames

    def _pull(self) -> None:
        pulled, size = [np.zeros(0, np.float32)], 0
        while size < _PULL_SAMPLES:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._ended = True
                break
            pulled.append(chunk)
            size += len(chunk)
        self._samples += size
        sound = np.concatenate(pulled)
        self._add(self._log_mel.push(sound), self._activity.push(sound))
        if self._ended:
            self._add(self._log_mel.finish(), self._activity.finish())
        oldest = self._asked - self._history
        self._mel.drop(MEL_FRAMES * oldest)
        self._speech.drop(oldest)

    def _add(self, log_mel: NDArray[np.float32], flags: NDArray[np.bool_]) -> None:
        self._mel.add(log_mel)
        self._speech.add(flags)
        self._speaking += int(flags.sum())


class _History:
    """Rows numbered from the first one ever added; the oldest are dropped."""

    def __init__(self, empty: NDArray[Any]) -> None:
        self._rows = empty
        self._first = 0

    @property
    def end(self) -> int:
        return self._first + len(self._rows)

    def add(self, rows: NDArray[Any]) -> None:
        self._rows = np.concatenate([self._rows, rows])

    def drop(self, before: int) -> None:
        spare = min(max(0, before - self._first), len(self._rows))
        self._rows = self._rows[spare:]
        self._first += spare

    def take(self, begin: int, end: int, *, missing: float | bool) -> NDArray[Any]:
        assert begin >= self._first, "dropped too early"
        found = self._rows[begin - self._first : end - self._first]
        short = end - begin - len(found)
        return np.concatenate([found, np.full((short, *found.shape[1:]), missing, found.dtype)]) if short else found
