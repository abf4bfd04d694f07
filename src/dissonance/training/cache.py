"""The cache: every clip goes once through the code that a scan uses, and is kept under the hash of its content and of the settings.

    FOLDER/entries/ab/abcd....safetensors    one clip (see cached_clip.py), written beside its place and renamed: whole or not there
    FOLDER/index.jsonl                       one line a clip: its key, or why it has none; made anew at the end of every build

Faces come from a decode worker (`engine.scan.workers`), so that no clip can take the build down. A worker's windows carry their mel normalised, which
does not give back what other windows need, so the sound is then decoded here: from bytes that a worker has read to their end, by the same code, and
every window's mel and speech must be what the worker sent. The window's length T is no part of the key: nothing that is kept depends on it.
"""

import contextlib
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import BundleSpec, CropSpec, MelSpec
from dissonance.config import LimitsConfig, ModelConfig, ScanConfig, SpeechConfig
from dissonance.engine.media.audio import SoundReader
from dissonance.engine.media.clip import SOUND_ALONE, ClipSummary, Window
from dissonance.engine.media.detect import make_detector
from dissonance.engine.media.probe import probe
from dissonance.engine.media.sound import SoundTrack
from dissonance.engine.scan.messages import Crashed, Failed, Opened, Task
from dissonance.engine.scan.workers import WorkerPool
from dissonance.errors import MediaError, OutputError
from dissonance.files import replacing
from dissonance.locks import held
from dissonance.training.cached_clip import CachedClip, Track, check_entry, frames_of, open_entry, write_entry
from dissonance.training.labels import Clip, Skipped

PREPROCESSING = 1  # raise it when a change of the media code changes what a clip becomes
LONGEST_S = 300.0  # a clip is held in memory whole; longer ones are skipped
_NO_CLIP = frozenset({"no_face", "no_sound", "too_short"})  # said of a content, once and for all; anything else is tried again
_MAX_TRIES = 2
_POLL_S = 1.0

Outcome = Literal["cached", "known", "skipped"]


@dataclass(frozen=True)
class CacheReport:
    """What a build came to. entries: key of every cached clip by its uri. skipped: the other clips, each with its reason."""

    entries: Mapping[str, str]
    skipped: tuple[Skipped, ...]

    def reasons(self) -> dict[str, int]:
        """How many were skipped for what."""
        return dict(Counter(skip.reason for skip in self.skipped))


class ClipCache:
    """Clips of one preprocessing in a folder, which may hold those of others as well."""

    def __init__(self, folder: Path, *, model: ModelConfig, scan: ScanConfig) -> None:
        """`model` gives crop size, mel bins and frame rate; `scan` detector, tracking and speech. Raises ConfigError for a missing detector file."""
        self._folder = folder
        limits = scan.limits.model_copy(update={"max_duration_s": min(scan.limits.max_duration_s, LONGEST_S)})
        self._scan = scan.model_copy(update={"limits": limits})
        self._crop, self._mel = CropSpec(size_px=model.visual.image_size), MelSpec(bins=model.audio.mel_bins)
        plain = model.model_copy(update={"hop": model.frames})  # overlapping windows would only send the same sound twice
        self._spec = BundleSpec(model=plain, crop=self._crop, mel=self._mel, trained=False, trained_on="nothing")
        settings = {
            "code": PREPROCESSING,
            "fps": model.fps,
            "crop": self._crop.model_dump(),
            "mel": self._mel.model_dump(),
            "scan": scan.fingerprint(),
        }
        self.preprocessing = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def key(self, clip: Clip, content_sha256: str) -> str:
        """The name of an entry. Boxes from a file are looked up by uri, so there the uri is part of it."""
        parts = [content_sha256, self.preprocessing, *([clip.uri] if self._scan.detector.kind == "boxes" else [])]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Where the entry is, or would be."""
        return self._folder / "entries" / key[:2] / f"{key}.safetensors"

    def open(self, key: str) -> CachedClip:
        """One clip. Raises UsageError where it is not there or damaged."""
        return open_entry(self.path(key))

    def build(self, clips: Sequence[Clip], *, workers: int = 1, progress: Callable[[int, int, str, Outcome], None] = lambda *_: None) -> CacheReport:
        """Make the entries that are missing or damaged. `progress` is called with clips done, clips in all, the clip's uri and its outcome.

        A clip that cannot be used is skipped: missing or unreadable, corrupt or one that cost its worker (the reasons of a scan), without a face
        (no_face) or sound (no_sound), damaged in part (damaged), shorter than limits.min_frames (too_short). Killed at any time, a build goes on
        where it was. Raises OutputError where the folder cannot be written, UsageError where another build is at work in it, ConfigError for a
        wrong detector.
        """
        make_detector(self._scan.detector)
        try:
            with self._locked():
                for partial in self._folder.glob("entries/*/.*.partial"):
                    partial.unlink()  # of a build that was killed
                build = _Build(self, clips, self._index(), progress)
                try:
                    build.run(workers, spec=self._spec, scan=self._scan)
                finally:
                    self._write_index(build.lines)
                return build.report()
        except OSError as error:
            raise OutputError(
                f"Cannot write cache '{self._folder}': {error.strerror or error}. Free some space, or choose another folder."
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        taken = f"Another build is at work in cache '{self._folder}'. Wait for it to end, or choose another folder."
        with held(self._folder / ".lock", taken=taken):
            yield

    def _index(self) -> list[dict[str, Any]]:
        """The lines of the index; entries tell themselves what they are, so lines that are none are no loss."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for text in (self._folder / "index.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    line = json.loads(text)
                    if isinstance(line, dict) and isinstance(line.get("key"), str) and isinstance(line.get("uri"), str):
                        lines.append(line)
        return lines

    def _write_index(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self._folder / "index.jsonl") as partial:
            partial.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), encoding="utf-8")

    # ------------------------------------------------------------------------------------------------------ one clip, read

    def assemble(self, path: Path, windows: Sequence[Window], summary: ClipSummary) -> CachedClip:
        """A clip from its worker's windows and from its sound, read here. Raises MediaError with the reason for which it is skipped."""
        trouble = summary.picture_error or summary.sound_error
        if trouble is not None:
            raise MediaError("damaged", trouble)
        if summary.frames < self._scan.limits.min_frames:
            raise MediaError("too_short", f"has {summary.frames} frames; {self._scan.limits.min_frames} is the least (limits.min_frames)")
        faces = [window for window in windows if window.track != SOUND_ALONE]
        if not faces:
            raise MediaError("no_face", "no face was found")
        if summary.speech_fraction is None:
            raise MediaError("no_sound", "it has no sound that can be decoded")
        log_mel, speech = read_sound(path, origin_s=summary.origin_s, mel=self._mel, speech=self._scan.speech, limits=self._scan.limits)
        clip = CachedClip(tuple(join_windows(faces)), log_mel, speech)
        for window in faces:
            mel, flags = clip.sound(window.first_frame, window.frames)
            if window.mel is None or not (np.array_equal(mel, window.mel[:, : mel.shape[1]]) and np.array_equal(flags, window.speech)):
                raise MediaError("changed", "its sound is not what the decode worker heard: the file changed while it was read")
        return clip


def read_sound(
    path: Path, *, origin_s: float, mel: MelSpec, speech: SpeechConfig, limits: LimitsConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log-mel (4 F, bins), log10 and not normalised, and speech (F,), from the grid's frame 0 to the sound's end. Raises MediaError."""
    reader = SoundReader(path, probe(path, limits=limits), origin_s=origin_s)
    return SoundTrack(reader, mel=mel, speech=speech).whole()


def join_windows(windows: Sequence[Window]) -> Iterator[Track]:
    """Windows, in order within each track, as whole tracks. Raises MediaError decoder_crash where they do not fit together."""
    of_track: dict[int, list[Window]] = {}
    for window in windows:
        of_track.setdefault(window.track, []).append(window)
    for track, parts in of_track.items():
        if parts[0].index != 0:
            raise MediaError("decoder_crash", f"the decode worker began track {track} with window {parts[0].index}")
        end = first = parts[0].first_frame
        crops, boxes, motion = [], [], []
        for window in parts:
            fresh = window.first_frame + window.frames - end
            if not 0 < fresh <= min(len(window.new_crops), window.frames):
                raise MediaError("decoder_crash", f"window {window.index} of track {track} does not go on where the one before it ended")
            crops.append(window.new_crops[-fresh:])
            boxes.append(window.boxes[-fresh:])
            motion.append(window.mouth_motion[-fresh:])
            end += fresh
        yield Track(track, first, np.concatenate(crops), np.concatenate(boxes), np.concatenate(motion))


# ------------------------------------------------------------------------------------------------------------- a build


@dataclass
class _Job:
    """A clip at a worker."""

    clip: Clip
    content_sha256: str
    key: str
    tries: int = 1
    windows: list[Window] = field(default_factory=list)
    content: str | None = None  # by the worker


class _Build:
    """One build under way: which clips are where, and the index that it will leave."""

    def __init__(
        self, cache: ClipCache, clips: Sequence[Clip], index: Sequence[dict[str, Any]], progress: Callable[[int, int, str, Outcome], None]
    ) -> None:
        self._cache = cache
        self._clips = clips
        self._progress = progress
        self._entries: dict[str, str] = {}
        self._skipped: list[Skipped] = []
        self._jobs: dict[int, _Job] = {}
        self._again: deque[Task] = deque()
        self._tasks = 0
        self._said = {line["key"]: line for line in index if line.get("reason") in _NO_CLIP}
        self._lines = {(line["uri"], line.get("preprocessing")): line for line in index}

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The index, old lines of other clips and settings among it."""
        return list(self._lines.values())

    def report(self) -> CacheReport:
        return CacheReport(self._entries, tuple(self._skipped))

    def run(self, workers: int, *, spec: BundleSpec, scan: ScanConfig) -> None:
        tasks = self._missing()
        with WorkerPool(count=workers, spec=spec, scan=scan) as pool:
            for event in pool.run(lambda: self._again.popleft() if self._again else next(tasks, None), poll=lambda: _POLL_S):
                job, message = self._jobs[event.task.id], event.message
                if isinstance(message, Opened):
                    job.content = message.content_hash
                elif isinstance(message, Window):
                    job.windows.append(message)
                elif isinstance(message, Crashed) and job.tries < _MAX_TRIES:
                    self._hand_out(_Job(job.clip, job.content_sha256, job.key, tries=job.tries + 1), again=True)
                elif isinstance(message, Crashed | Failed):
                    self._skip(job.clip, message.reason, message.detail, key=job.key)
                elif isinstance(message, ClipSummary):
                    self._finish(job, message)
                if isinstance(message, Crashed | Failed | ClipSummary):
                    del self._jobs[event.task.id]

    def _missing(self) -> Iterator[Task]:
        """Tasks for the clips that the cache does not hold yet."""
        for clip in self._clips:
            try:
                content = _sha256(clip.path)
            except OSError as error:
                self._skip(clip, "unreadable", error.strerror or str(error))
                continue
            key = self._cache.key(clip, content)
            facts = check_entry(self._cache.path(key))
            if facts is not None:
                self._entered(clip, key, facts, "known")
            elif key in self._said:
                self._skip(clip, self._said[key]["reason"], str(self._said[key].get("detail")), key=key)
            else:
                yield self._hand_out(_Job(clip, content, key))

    def _hand_out(self, job: _Job, *, again: bool = False) -> Task:
        self._tasks += 1
        task = Task(self._tasks, str(job.clip.path), job.clip.uri, fresh=again)
        self._jobs[task.id] = job
        if again:
            self._again.append(task)
        return task

    def _finish(self, job: _Job, summary: ClipSummary) -> None:
        try:
            if job.content != job.content_sha256:
                raise MediaError("changed", "the file changed while it was read")
            clip = self._cache.assemble(job.clip.path, job.windows, summary)
        except MediaError as error:
            self._skip(job.clip, error.reason, error.detail, key=job.key)
            return
        facts = {
            "content_sha256": job.content_sha256,
            "preprocessing": self._cache.preprocessing,
            "frames": summary.frames,
            "tracks": frames_of(clip.tracks),
            "sound_frames": clip.sound_frames,
            "speech_fraction": summary.speech_fraction,
            "decode_errors": summary.decode_errors,
        }
        path = self._cache.path(job.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            write_entry(partial, clip, facts)
        self._entered(job.clip, job.key, facts, "cached")

    def _entered(self, clip: Clip, key: str, facts: Mapping[str, Any], outcome: Outcome) -> None:
        self._entries[clip.uri] = key
        self._note(clip, {"key": key, **facts}, outcome)

    def _skip(self, clip: Clip, reason: str, detail: str, *, key: str = "") -> None:
        self._skipped.append(Skipped(clip.path, reason, detail))
        self._note(clip, {"key": key, "reason": reason, "detail": detail}, "skipped")

    def _note(self, clip: Clip, line: Mapping[str, Any], outcome: Outcome) -> None:
        self._lines[clip.uri, self._cache.preprocessing] = {"uri": clip.uri, "preprocessing": self._cache.preprocessing, **line}
        self._progress(len(self._entries) + len(self._skipped), len(self._clips), clip.uri, outcome)


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(None, "there is no such file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
