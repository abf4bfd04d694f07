"""One file becomes windows: probe, decode, faces, crops and sound, tied together on one clock, in bounded memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import LimitsConfig, ModelConfig, ScanConfig, SpeechConfig
from dissonance.engine.media.audio import SAMPLE_RATE_HZ, SoundReader
from dissonance.engine.media.boxes import BoxFile
from dissonance.engine.media.dali import DaliDecoder, DaliReader
from dissonance.engine.media.detect import Detector, Picture
from dissonance.engine.media.faces import DetectedFaces, FaceStream, GivenFaces, TrackProgress
from dissonance.engine.media.probe import MediaInfo, check_duration, probe
from dissonance.engine.media.sound import SoundSummary, SoundTrack
from dissonance.engine.media.video import GridReader, VideoReader
from dissonance.engine.media.windows import Span, TrackWindows, window_starts
from dissonance.errors import MediaError

SOUND_ALONE = -1  # the track of windows that have no face
MEL_FRAMES = 4  # a video frame
SOUND_HISTORY_FRAMES = 1500
ENDS_THE_FILE = frozenset({"refused", "out_of_memory"})  # where one stream costs too much, what the other holds is no result either


@dataclass(frozen=True)
class Window:
    """T frames of one face, or of the sound alone, and their exact sound.

    track: the face's number; -1: sound alone, and `new_crops` and `boxes` are empty.
    index: 0, 1, 2, ... within the track.
    first_frame, frames: where it lies on the 25 fps grid; `frames` < T only where the whole track is shorter (the rest is masked).
    start_s, end_s: the same as presentation times.
    new_crops: (n, S, S, 3) uint8 RGB, the last n of the window's valid frames; the earlier ones came with the track's previous window. All of them
        under `per_frame` or where windows do not overlap.
    mel: (bins, 4 T) float32, normalised over the valid frames and 0 beyond; None: the file has no sound that can be decoded.
    boxes: (frames, 4) float32, the face squares x0, y0, x1, y1 in display pixels, smoothed, before enlargement.
    speech: (frames,) bool. False throughout where there is no sound.
    mouth_motion: (frames,) float32, see mouth.py.
    """

    track: int
    index: int
    first_frame: int
    frames: int
    start_s: float
    end_s: float
    new_crops: NDArray[np.uint8]
    mel: NDArray[np.float32] | None
    boxes: NDArray[np.float32]
    speech: NDArray[np.bool_]
    mouth_motion: NDArray[np.float32]


@dataclass(frozen=True)
class ClipSummary:
    """What is known when a file was read to its end.

    duration_s: of the picture on the grid; of the sound where there is no picture.
    frames: of the grid. frames_decoded, frames_dropped: of the source.
    speech_fraction: share of the sound's frames with speech; None: no sound that can be decoded.
    speech: whether that is enough to be a voice (SpeechConfig.min_fraction).
    faces: tracks that gave windows.
    decode_errors: packets of either stream that did not decode; what they held is missing from the windows.
    picture_error, sound_error: why one stream was not read to its end while the other was; windows made before it are valid.
    """

    info: MediaInfo
    origin_s: float
    duration_s: float
    frames: int
    frames_decoded: int
    frames_dropped: int
    variable_frame_rate: bool
    speech_fraction: float | None
    speech: bool
    faces: int
    decode_errors: int
    picture_error: str | None
    sound_error: str | None

    @property
    def modalities(self) -> Literal["av", "v", "a", ""]:
        """Which streams show a person: faces (v), a voice (a), both, or neither."""
        if self.faces:
            return "av" if self.speech else "v"
        return "a" if self.speech else ""


class _Picture:
    """The frames of a file; trouble ends them and is kept in `error`."""

    def __init__(self, path: Path, info: MediaInfo, *, dali: DaliDecoder | None, limits: LimitsConfig, alive: Callable[[], None]) -> None:
        self.error: MediaError | None = None
        self.frames = 0
        self._reader: GridReader[Any] | None = None
        if info.video is not None:
            if dali is None:
                self._reader = VideoReader(path, info, limits=limits, alive=alive)
            else:
                self._reader = DaliReader(path, info, dali, limits=limits, alive=alive)

    def __iter__(self) -> Iterator[tuple[int, Picture]]:
        if self._reader is None:
            return
        frames = iter(self._reader)
        while True:
            try:
                index, frame = next(frames)
            except StopIteration:
                break
            except MediaError as error:
                if error.reason in ENDS_THE_FILE:
                    raise
                self.error = error
                break
            self.frames = index + 1
            yield index, frame
        if self.frames == 0 and self.error is None:
            self.error = MediaError("corrupt", "the video stream holds no frame that can be decoded")

    @property
    def origin_s(self) -> float:
        assert self._reader is not None
        return float(self._reader.origin_s)

    @property
    def counts(self) -> tuple[int, int, bool, int]:
        """frames_decoded, frames_dropped, variable_frame_rate, decode_errors."""
        reader = self._reader
        if reader is None:
            return 0, 0, False, 0
        return reader.frames_decoded, reader.frames_dropped, reader.variable_frame_rate, reader.decode_errors


class _Sound:
    """The sound of a file, as far as it can be decoded; trouble leaves it silent and is kept in `error`."""

    def __init__(
        self,
        path: Path,
        info: MediaInfo,
        *,
        origin_s: float,
        mel: MelSpec,
        speech: SpeechConfig,
        limits: LimitsConfig,
        history_frames: int,
        progress: Callable[[float], None],
    ) -> None:
        self.error: MediaError | None = None
        self._bins = mel.bins
        self._track: SoundTrack | None = None
        self._reader: SoundReader | None = None
        if info.audio is not None:
            try:
                self._reader = SoundReader(path, info, origin_s=origin_s, alive=lambda: progress(0.0))
                self._track = SoundTrack(_watched(self._reader, progress, limits), mel=mel, speech=speech, history_frames=history_frames)
            except MediaError as error:
                self._lose(error)

    @property
    def decode_errors(self) -> int:
        """Packets that did not decode so far."""
        return 0 if self._reader is None else self._reader.decode_errors

    def _lose(self, error: MediaError) -> None:
        if error.reason in ENDS_THE_FILE:
            raise error
        self.error = error
        self._track = None

    def window(self, first_frame: int, frames: int, size: int) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """Mel (bins, 4 size), 0 beyond 4 frames, or None; and speech (frames,)."""
        if self._track is not None:
            try:
                mel = np.zeros((self._bins, MEL_FRAMES * size), np.float32)
                mel[:, : MEL_FRAMES * frames] = self._track.mel(first_frame, frames)
                return mel, self._track.speech(first_frame, frames)
            except MediaError as error:
                self._lose(error)
        return None, np.zeros(frames, bool)

    def finish(self) -> SoundSummary | None:
        """Read to the end; None where there is no sound."""
        if self._track is not None:
            try:
                return self._track.finish()
            except MediaError as error:
                self._lose(error)
        return None


def read_clip(
    path: Path,
    *,
    model: ModelConfig,
    crop: CropSpec,
    mel: MelSpec,
    scan: ScanConfig,
    detector: Detector | BoxFile,
    dali: DaliDecoder | None = None,
    uri: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Iterator[Window | ClipSummary]:
    """Windows of every face of a file as they become certain, then exactly one ClipSummary.

    A file without a face, but with a voice, gives windows of the sound alone (track -1), of those stretches that hold speech. `uri` is the name
    under which given boxes are looked up (default: the path as text). `dali` decodes the pictures instead of PyAV. `progress` is called with the
    seconds that were read of it for every frame of the grid and every chunk of sound, and with 0 for every packet.
    Nothing is decided on a clip's length: that is the caller's.

    Raises MediaError: the file cannot be opened, neither its picture nor its sound could be decoded, or it costs more than `scan.limits` allow.
    Raises UnsuitableError, with `dali` only, at any time: the file is to be read again without.
    """
    info = probe(path, limits=scan.limits)
    history = SOUND_HISTORY_FRAMES + model.frames + _delay_frames(scan)
    picture = _Picture(path, info, dali=dali, limits=scan.limits, alive=lambda: progress(0.0))
    sound: _Sound | None = None
    faces: FaceStream | None = None
    windows: dict[int, TrackWindows] = {}
    tracks: set[int] = set()
    origin_s = info.audio.start_s if info.audio is not None else 0.0

    def open_sound() -> _Sound:
        return _Sound(path, info, origin_s=origin_s, mel=mel, speech=scan.speech, limits=scan.limits, history_frames=history, progress=progress)

    def with_sound(news: list[TrackProgress], sound: _Sound) -> Iterator[Window]:
        for track, span in _spans(news, windows, model):
            tracks.add(track)
            yield _window(track, span, sound, origin_s=origin_s, model=model)

    for index, frame in picture:
        progress(index / model.fps)
        check_duration(index / model.fps, scan.limits)
        if faces is None or sound is None:
            origin_s = picture.origin_s
            sound = open_sound()
            if isinstance(detector, BoxFile):
                given = detector.tracks(str(path) if uri is None else uri)
                faces = GivenFaces(given, origin_s=origin_s, fps=model.fps, crop=crop)
            else:
                faces = DetectedFaces(detector, scan=scan, crop=crop)
        yield from with_sound(faces.push(index, frame), sound)
    if faces is not None and sound is not None:
        yield from with_sound(faces.finish(), sound)

    sound = sound or open_sound()
    heard = sound.finish()
    if heard is None and not tracks and picture.error is not None:
        raise picture.error
    if heard is None and info.video is None:
        raise sound.error or MediaError("corrupt", "the file holds neither picture nor sound")
    speech = heard is not None and heard.speech_fraction >= scan.speech.min_fraction
    if heard is not None and speech and not tracks:
        yield from _sound_alone(open_sound(), heard, origin_s=origin_s, model=model, crop=crop, min_fraction=scan.speech.min_fraction)
    decoded, dropped, variable, damaged = picture.counts
    yield ClipSummary(
        info=info,
        origin_s=origin_s,
        duration_s=picture.frames / model.fps if picture.frames or heard is None else heard.duration_s,
        frames=picture.frames,
        frames_decoded=decoded,
        frames_dropped=dropped,
        variable_frame_rate=variable,
        speech_fraction=None if heard is None else heard.speech_fraction,
        speech=speech,
        faces=len(tracks),
        decode_errors=damaged + sound.decode_errors,
        picture_error=None if picture.error is None else str(picture.error),
        sound_error=None if sound.error is None else str(sound.error),
    )


def _watched(chunks: Iterable[NDArray[np.float32]], progress: Callable[[float], None], limits: LimitsConfig) -> Iterator[NDArray[np.float32]]:
    samples = 0
    for chunk in chunks:
        samples += len(chunk)
        progress(samples / SAMPLE_RATE_HZ)
        check_duration(samples / SAMPLE_RATE_HZ, limits)
        yield chunk


def _delay_frames(scan: ScanConfig) -> int:
    """How far two tracks' windows, handed out at the same moment, may lie apart on the grid."""
    tracking = scan.tracking
    return 2 * (scan.detector.every_frames + tracking.max_gap_frames + tracking.min_track_frames + tracking.smoothing_frames)


def _spans(news: list[TrackProgress], windows: dict[int, TrackWindows], model: ModelConfig) -> Iterator[tuple[int, Span]]:
    for part in news:
        track = windows.setdefault(part.track, TrackWindows(model))
        for face in part.faces:
            for span in track.push(face):
                yield part.track, span
        if part.ended:
            for span in track.finish():
                yield part.track, span
            del windows[part.track]


def _window(track: int, span: Span, sound: _Sound, *, origin_s: float, model: ModelConfig) -> Window:
    mel, speech = sound.window(span.first_frame, span.frames, model.frames)
    return Window(
        track=track,
        index=span.index,
        first_frame=span.first_frame,
        frames=span.frames,
        start_s=origin_s + span.first_frame / model.fps,
        end_s=origin_s + (span.first_frame + span.frames) / model.fps,
        new_crops=span.new_crops,
        mel=mel,
        boxes=span.boxes,
        speech=speech,
        mouth_motion=span.mouth_motion,
    )


def _sound_alone(sound: _Sound, heard: SoundSummary, *, origin_s: float, model: ModelConfig, crop: CropSpec, min_fraction: float) -> Iterator[Window]:
    """Windows over the sound's whole timeline; only those in which at least `min_fraction` of the frames are speech."""
    total = max(1, math.floor(heard.duration_s * model.fps + 0.5))
    frames = min(total, model.frames)
    index = 0
    for first_frame in window_starts(total, model):
        found, speech = sound.window(first_frame, frames, model.frames)
        if found is None or speech.mean() < min_fraction:
            continue
        yield Window(
            track=SOUND_ALONE,
            index=index,
            first_frame=first_frame,
            frames=frames,
            start_s=origin_s + first_frame / model.fps,
            end_s=origin_s + (first_frame + frames) / model.fps,
            new_crops=np.zeros((0, crop.size_px, crop.size_px, 3), np.uint8),
            mel=found,
            boxes=np.zeros((0, 4), np.float32),
            speech=speech,
            mouth_motion=np.zeros(frames, np.float32),
        )
        index += 1
