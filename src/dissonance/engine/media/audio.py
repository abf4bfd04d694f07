"""Sound of one file: mono, 16 kHz, on the clock."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from dissonance.engine.media.packets import PacketReader
from dissonance.engine.media.probe import MediaInfo, open_media
from dissonance.errors import MediaError

SAMPLE_RATE_HZ = 16_000
CHUNK_SAMPLES = SAMPLE_RATE_HZ  # no chunk is longer
RESYNC_S = 0.02  # sound this far from where its timestamp says is moved there; below it is the rounding of timestamps
_INPUT_BLOCK = 4096  # samples resampled at a time
_RATES_HZ = range(1000, 768_001)  # others are taken for damage
_LOUDEST = 8.0  # float codecs may exceed 1, but damage must not reach infinity
# Weights of the channels in the mono sound (ITU-R BS.775), before they are made to add up to one. The effects channel is left out.
_WEIGHTS = {
    "FL": 0.7071,
    "FR": 0.7071,
    "FC": 1.0,
    "LFE": 0.0,
    "LFE2": 0.0,
    "BL": 0.5,
    "BR": 0.5,
    "SL": 0.5,
    "SR": 0.5,
    "BC": 0.5,
    "FLC": 0.7071,
    "FRC": 0.7071,
}


class SoundReader:
    """The chosen audio stream as contiguous (samples,) float32 chunks, sample n at `origin_s` + n / 16000: iterate once.

    Codec delay and edit lists are honoured, a late start is silence, an early one is cut; gaps are silence, overlaps are cut. Channels are mixed with
    the weights of ITU-R BS.775. Packets that do not decode leave silence and are counted. No chunk is longer than a second.
    Raises MediaError("corrupt") where nothing decodes; ValueError where `info` has no audio.
    """

    def __init__(self, path: Path, info: MediaInfo, *, origin_s: float, alive: Callable[[], None] = lambda: None) -> None:
        if info.audio is None:
            raise ValueError("this file has no audio stream")
        self._path, self._info, self._audio, self._origin_s = path, info, info.audio, origin_s
        self._alive = alive
        self.decode_errors = 0  # packets that did not decode
        self.discontinuities = 0  # jumps of the clock that were closed (see packets.py)
        self.resyncs = 0  # gaps and overlaps

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        position = 0  # samples given out
        for start, sound in self._placed():
            while position < start:
                silence = np.zeros(min(start - position, CHUNK_SAMPLES), np.float32)
                position += len(silence)
                yield silence
            fresh = sound[position - start :]
            for begin in range(0, len(fresh), CHUNK_SAMPLES):
                yield fresh[begin : begin + CHUNK_SAMPLES]
            position += len(fresh)

    def _placed(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Pieces at 16 kHz with the sample they belong at; those may overlap, leave gaps, and begin before 0."""
        run: _Run | None = None
        for time_s, rate_hz, mono in self._decoded():
            expected_s = time_s if run is None else run.end_s
            away = time_s is not None and expected_s is not None and abs(time_s - expected_s) > RESYNC_S
            if run is None or rate_hz != run.rate_hz or away:
                if run is not None:
                    yield from run.finish()
                    self.resyncs += away
                start_s = time_s if away or expected_s is None else expected_s
                run = _Run(rate_hz, start_s if start_s is not None else Fraction(self._audio.start_s - self._origin_s))
            yield from run.push(mono)
        if run is None:
            raise MediaError("corrupt", f"nothing of the audio stream decodes ({self.decode_errors} packets failed)")
        yield from run.finish()

    def _decoded(self) -> Iterator[tuple[Fraction | None, int, NDArray[np.float32]]]:
        """(time after the origin, rate, mono samples) of every decoded frame."""
        origin_s = Fraction(self._origin_s)
        with open_media(self._path) as container:
            stream: Any = container.streams[self._audio.index]
            stream.codec_context.thread_count = 1
            packets = PacketReader(container, self._info, self._audio.index, alive=self._alive)
            for packet in packets:
                try:
                    frames = stream.decode(packet)
                except av.error.MemoryError as error:
                    raise MediaError("out_of_memory", "decoding its sound") from error
                except av.error.FFmpegError:
                    self.decode_errors += 1
                    continue
                finally:
                    self.discontinuities = packets.discontinuities
                for frame in frames:
                    if frame.samples == 0 or frame.sample_rate not in _RATES_HZ:
                        continue
                    time_s = None if frame.pts is None else frame.pts * stream.time_base - origin_s
                    yield time_s, frame.sample_rate, _mono(frame)


class _Run:
    """Sound without gaps at one rate, from `start_s` on; resampled as it comes. libswresample's filter delay is none: it compensates it itself."""

    def __init__(self, rate_hz: int, start_s: Fraction) -> None:
        self.rate_hz = rate_hz
        self._start_s = start_s
        self._taken = 0  # samples at rate_hz
        self._next = round(start_s * SAMPLE_RATE_HZ)  # sample that the next piece begins at
        self._resampler = None if rate_hz == SAMPLE_RATE_HZ else av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)

    @property
    def end_s(self) -> Fraction:
        return self._start_s + Fraction(self._taken, self.rate_hz)

    def push(self, mono: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for begin in range(0, len(mono), _INPUT_BLOCK):
            block = mono[begin : begin + _INPUT_BLOCK]
            if self._resampler is None:
                self._taken += len(block)
                yield self._place(block)
                continue
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self.rate_hz, self._taken, Fraction(1, self.rate_hz)
            self._taken += len(block)
            yield from self._resampled(frame)

    def finish(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What the filter still holds, up to where the input ended."""
        end = round(self.end_s * SAMPLE_RATE_HZ)
        for start, sound in self._resampled(None):
            yield start, sound[: max(0, end - start)]

    def _resampled(self, frame: av.AudioFrame | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for piece in self._resampler.resample(frame) if self._resampler is not None else []:
            samples: NDArray[np.float32] = piece.to_ndarray()[0].astype(np.float32, copy=False)
            yield self._place(samples)

    def _place(self, sound: NDArray[np.float32]) -> tuple[int, NDArray[np.float32]]:
        start = self._next
        self._next += len(sound)
        return start, sound


def _mono(frame: av.AudioFrame) -> NDArray[np.float32]:
    """(samples,) float32, full scale 1: the weighted mean of the channels."""
    name = frame.format.name
    channels = frame.layout.nb_channels
    # PyAV does not hand over 64-bit integers, and reads past the end of the planes where there are eight or more.
    if name.startswith("s64") or (name.endswith("p") and channels >= 8):
        name = "dbl"
        frame = av.AudioResampler(format=name, layout=frame.layout, rate=frame.sample_rate).resample(frame)[0]
    samples: NDArray[Any] = frame.to_ndarray()
    if not name.endswith("p"):
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    weights = np.array([_WEIGHTS.get(channel.name, 0.0) for channel in frame.layout.channels], np.float32)
    if len(weights) != channels or weights.sum() == 0:
        weights = np.ones(channels, np.float32)
    mono = (weights / weights.sum()) @ samples.astype(np.float32, copy=False)
    return np.asarray(np.clip(np.nan_to_num(mono, nan=0.0), -_LOUDEST, _LOUDEST), np.float32)
