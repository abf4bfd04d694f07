"""Pictures decoded by NVIDIA DALI, with NVDEC into the GPU's memory, where they stay. No GPU has run it yet.

The stream is cut into pieces (segments.py), which DALI decodes one after another, a few pictures at a time. What comes out is counted against what
went in: any difference, and whatever else DALI cannot do, is an UnsuitableError, after which the file is PyAV's.

DALI converts all pictures by the matrix of BT.601, in the range that the stream names, and smooths chroma where `Frame` replicates it; the matrix is
put right here. Its CPU operators, which the tests use, do the same for VP8, VP9 and MJPEG.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.config import Decoder, LimitsConfig
from dissonance.engine.media import bitstreams
from dissonance.engine.media.bitstreams import UnsuitableError
from dissonance.engine.media.frame import BT601, BT709, FULL_RANGE, HD_ROWS, LUMA_WEIGHTS, rgb_matrix
from dissonance.engine.media.packets import PacketReader
from dissonance.engine.media.probe import MediaInfo, VideoStream, check_pixels, open_media
from dissonance.engine.media.segments import cut_segments
from dissonance.engine.media.video import GridReader
from dissonance.engine.runtime.buckets import is_out_of_memory, names_the_gpu
from dissonance.errors import EnvironmentMissingError, missing_extra
from dissonance.machine import find_nvdec, is_installed, look_for_gpus

Backend = Literal["gpu", "cpu"]
# NVDEC has AV1 and MPEG-4 too; what their packets say of themselves is not looked into yet.
CODECS: dict[Backend, frozenset[str]] = {"gpu": bitstreams.CODECS, "cpu": frozenset({"vp8", "vp9", "mjpeg"})}
_PIXELS = {"yuv420p", "yuvj420p"}  # what every NVDEC decodes
_DEEP_PIXELS, _DEEP_CODECS = {"yuv420p10le"}, {"hevc", "vp9"}
# Pictures that are decoded at once. One of these does not divide a piece's length, so its last run gives fewer: that is how its end is seen.
_LENGTHS = (8, 7, 5, 3, 11, 13)


def require_decoder(decoder: Decoder) -> None:
    """Raise EnvironmentMissingError for a decoder that cannot be used here, without loading it."""
    if decoder == "pyav":
        return
    for module in ("nvidia.dali", "torch"):
        if not is_installed(module):
            raise missing_extra(module, "gpu", "--decoder dali")
    if decoder == "dali":
        gpus, reason = look_for_gpus()
        if not gpus:
            raise EnvironmentMissingError(f"--decoder dali needs an NVIDIA GPU: {reason}. Use --decoder pyav, or see `dissonance doctor`.")
        try:
            find_nvdec()
        except FileNotFoundError as error:
            raise EnvironmentMissingError(f"--decoder dali: {error}. Use --decoder pyav, or see `dissonance doctor`.") from error


class DaliDecoder:
    """DALI in this process: one video at a time."""

    def __init__(self, backend: Backend = "gpu") -> None:
        """Raises EnvironmentMissingError where DALI or torch, which takes its pictures over, is not installed."""
        self.backend = backend
        try:
            self._torch = importlib.import_module("torch")
            self._fn = importlib.import_module("nvidia.dali.fn")
            self._dali = importlib.import_module("nvidia.dali")
        except ImportError as error:
            raise missing_extra(error.name or "nvidia.dali", "gpu", "--decoder dali") from error
        self._pipelines: dict[int, Any] = {}

    def check(self, video: VideoStream) -> None:
        """Raise UnsuitableError for a stream that this backend is known not to decode."""
        codec, pixels = video.codec, video.pixel_format
        if codec not in CODECS[self.backend]:
            raise UnsuitableError(f"it does not decode {codec}")
        if pixels not in _PIXELS and not (pixels in _DEEP_PIXELS and codec in _DEEP_CODECS):
            raise UnsuitableError(f"it does not decode {codec} of {pixels}")

    def decode(self, data: bytes, count: int) -> Iterator[Any]:
        """The `count` pictures of a file in memory, (height, width, 3) uint8 RGB tensors, valid as long as they are held. Raises UnsuitableError."""
        length = next((length for length in _LENGTHS if count % length), None)
        if length is None:
            raise UnsuitableError(f"a piece of {count} pictures, whose end would not be seen")
        found = 0
        try:
            pipeline = self._pipelines.get(length) or self._build(length)
            pipeline.feed_input("video", [np.frombuffer(data, np.uint8)])
            while True:
                pictures = self._take(pipeline.run()[0])
                found += len(pictures)
                if found > count or (len(pictures) < length and found < count):
                    raise UnsuitableError(f"{'more than ' if found > count else ''}{found} pictures came out of {count}")
                yield from pictures
                if len(pictures) < length:
                    return
        except RuntimeError as error:
            if names_the_gpu(str(error)) and not is_out_of_memory(str(error)):
                raise  # this process may decode nothing more
            raise UnsuitableError(f"it failed after {found} of {count} pictures: {_gist(str(error))}") from error
        finally:
            if found != count:
                self._pipelines.clear()  # they may hold the rest of it

    def _build(self, length: int) -> Any:
        on_gpu = self.backend == "gpu"

        @self._dali.pipeline_def(  # type: ignore[untyped-decorator]
            batch_size=1, num_threads=1, device_id=0 if on_gpu else None, prefetch_queue_depth=1, exec_pipelined=False, exec_async=False
        )
        def define() -> Any:
            return self._fn.experimental.inputs.video(name="video", device="mixed" if on_gpu else "cpu", sequence_length=length)

        self._pipelines[length] = define()
        self._pipelines[length].build()
        return self._pipelines[length]

    def _take(self, batch: Any) -> list[Any]:
        """Copies, where the pictures are: DALI's own memory is for its next run. One each, so that a picture that is held holds no other."""
        on_gpu = self.backend == "gpu"
        pictures = self._torch.from_dlpack(batch[0]) if on_gpu else self._torch.from_numpy(np.asarray(batch[0]))
        copies = [picture.clone() for picture in pictures]
        if on_gpu:
            self._torch.cuda.current_stream().synchronize()  # DALI's next run does not wait for torch
        return copies


@dataclass(frozen=True)
class _Decoded:
    """A picture as `GridReader` wants it."""

    pts: int
    duration: int
    pixels: Any


class DaliReader(GridReader["DeviceFrame"]):
    """`GridReader` by DALI. Raises UnsuitableError, at the start or in the middle, for what PyAV has to read."""

    def __init__(
        self, path: Path, info: MediaInfo, decoder: DaliDecoder, *, limits: LimitsConfig | None = None, alive: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(path, info, limits=limits, alive=alive)
        decoder.check(self._video)
        self._decoder = decoder
        self._colour: tuple[int, bool] = (0, False)

    def _decoded(self) -> Iterator[tuple[Any, Fraction]]:
        with open_media(self._path) as container:
            stream: Any = container.streams[self._video.index]
            context = stream.codec_context
            space = context.colorspace if context.colorspace in LUMA_WEIGHTS else BT709 if self._video.height >= HD_ROWS else BT601
            self._colour = space, context.color_range == FULL_RANGE or self._video.pixel_format.startswith("yuvj")
            check_pixels(self._video.width, self._video.height, self._limits)
            packets = PacketReader(container, self._info, self._video.index, alive=self._alive)
            for segment in cut_segments(packets, stream):
                for shown, pixels in zip(segment.pictures, self._decoder.decode(segment.data, len(segment.pictures)), strict=True):
                    self._alive()
                    if pixels.shape != (self._video.height, self._video.width, 3):
                        raise UnsuitableError(f"pictures of {tuple(pixels.shape)} in a stream of {self._video.width} x {self._video.height}")
                    if shown.here:
                        self.frames_decoded += 1
                        yield _Decoded(shown.pts, shown.duration, pixels), stream.time_base
                self.discontinuities = packets.discontinuities
            self.decode_errors += packets.demux_errors

    def _frame(self, picture: _Decoded) -> "DeviceFrame":
        space, full = self._colour
        return DeviceFrame(picture.pixels, sample_aspect=self._video.sample_aspect, turn_deg=self._video.rotation_deg, space=space, full=full)


class DeviceFrame:
    """A `detect.Picture` whose pixels stay where they are: only regions that are asked for, and shrunk luma, come to the host."""

    def __init__(self, pixels: Any, *, sample_aspect: float, turn_deg: int, space: int, full: bool) -> None:
        """pixels: a (height, width, 3) uint8 tensor, RGB by the matrix of BT.601, as stored. `space`, `full`: what the stream has (AVColorSpace)."""
        self._pixels, self._turns, self._space, self._full = pixels, turn_deg // 90, space, full
        height, width, _ = pixels.shape
        self.width, self.height = (height, width) if self._turns % 2 else (width, height)
        self.aspect = 1 / sample_aspect if self._turns % 2 else sample_aspect

    def rgb_region(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """(y1 - y0, x1 - x0, 3): these pixels of the picture as displayed. The region lies inside the picture."""
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(f"region ({x0}, {y0}, {x1}, {y1}) is not inside a picture of {self.width} x {self.height}")
        for turn in range(self._turns):  # undo one clockwise turn at a time
            side = self.height if turn % 2 else self.width
            x0, y0, x1, y1 = y0, side - x1, y1, side - x0
        stored = self._pixels[y0:y1, x0:x1].contiguous().cpu().numpy()
        if (matrix := _mending(self._space, self._full)) is not None:
            stored = cv2.transform(stored, matrix)  # rounds, clips
        return np.ascontiguousarray(np.rot90(stored, -self._turns))

    def grey(self, max_side_px: int) -> NDArray[np.uint8]:
        """Luma as stored, shrunk by area averaging to square pixels so that its longer side is at most `max_side_px`: (rows, columns).

        As `Frame.grey`: by halves where the pictures are, and to the size on the host.
        """
        height, width, _ = self._pixels.shape
        wide, high = width * (1 / self.aspect if self._turns % 2 else self.aspect), float(height)
        shrink = min(1.0, max_side_px / max(wide, high))
        size = (max(1, round(wide * shrink)), max(1, round(high * shrink)))
        weights, black = _luma(self._full)
        luma = sum(self._pixels[..., channel].float() * weight for channel, weight in enumerate(weights)) + black
        while luma.shape[1] >= 2 * size[0] and luma.shape[0] >= 2 * size[1]:
            rows, columns = luma.shape[0] // 2, luma.shape[1] // 2
            luma = luma[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))
        grey = luma.cpu().numpy()
        if size != (grey.shape[1], grey.shape[0]):
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(np.rot90(np.clip(np.rint(grey), 0, 255).astype(np.uint8), -self._turns))


@functools.cache
def _mending(space: int, full: bool) -> NDArray[np.float32] | None:
    """(3, 3): RGB by BT.601 to RGB by `space`; None where they are the same."""
    true, taken = rgb_matrix(space, full, 8)[:, :3], rgb_matrix(BT601, full, 8)[:, :3]
    return None if np.allclose(true, taken) else (true @ np.linalg.inv(taken)).astype(np.float32)


@functools.cache
def _luma(full: bool) -> tuple[tuple[float, ...], float]:
    """Weights of R, G and B, and what is added, for the Y that RGB by BT.601 was made of."""
    matrix = rgb_matrix(BT601, full, 8)
    inverse = np.linalg.inv(matrix[:, :3])
    return tuple(inverse[0].tolist()), float(-inverse[0] @ matrix[:, 3])


def _gist(told: str) -> str:
    """The line of DALI's that says what is wrong."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    after = next((number for number, line in enumerate(lines) if line == "encountered:"), -1)
    return (lines[after + 1] if after + 1 < len(lines) else told)[:300]
