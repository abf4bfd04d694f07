"""YuNet through ONNX Runtime: a small convolutional face detector, better than Haar at turned and shaded faces.

Wu, Peng, Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023. At every cell (column c, row r) of strides
8, 16 and 32: score = sqrt(cls * obj), centre = ((c, r) + bbox[0:2]) * stride, size = exp(bbox[2:4]) * stride.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.config import DetectorConfig
from dissonance.engine.media.boxes import Box
from dissonance.engine.media.detect import Detection, Picture
from dissonance.errors import ConfigError, missing_extra

STRIDES = (8, 16, 32)
SIZE_MULTIPLE_PX = 32
NMS_IOU = 0.3
NMS_CANDIDATES = 1000
OUTPUTS = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in STRIDES)

# YuNet frames a face tightly, from hairline to chin and cheek to cheek; the face square (see detect.py) has this side over the
# tight box's height, and its centre lies this share of that height below the tight box's centre. Measured on drawn faces.
SQUARE_SIDE = 0.96
SQUARE_DROP = -0.03


class YunetDetector:
    """A YuNet ONNX file. One thread, spinning off: decode workers share the machine's cores.

    Raises ConfigError where the file cannot be read or is no YuNet, EnvironmentMissingError without onnxruntime.
    """

    def __init__(self, path: Path, config: DetectorConfig) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra("onnxruntime", "cpu", "The face detector 'yunet'") from error
        try:
            model = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"Cannot read detector.yunet_model '{path}': {error.strerror or error}. Give the path of a YuNet ONNX file.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ConfigError(f"detector.yunet_model '{path}' is not a model that ONNX Runtime can load: {error}. Give a YuNet ONNX file.") from error
        self._input = self._check(path)
        self._max_side_px = config.max_side_px
        self._min_face_fraction = config.min_face_fraction
        self._score_threshold = config.score_threshold

    def _check(self, path: Path) -> str:
        """Its one input's name, if the model has YuNet's form: dynamic height and width, and the outputs of three strides."""
        inputs = self._session.get_inputs()
        outputs = {output.name for output in self._session.get_outputs()}
        missing = [name for name in OUTPUTS if name not in outputs]
        remedy = "Give a YuNet ONNX file: one float input (batch, 3, height, width), any size; outputs cls, obj, bbox at strides 8, 16, 32."
        if missing:
            raise ConfigError(f"detector.yunet_model '{path}' has no output '{missing[0]}' (it has {', '.join(sorted(outputs))}). {remedy}")
        shape = list(inputs[0].shape)
        fixed = len(shape) == 4 and any(isinstance(side, int) and side > 0 for side in shape[2:])
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or fixed or inputs[0].type != "tensor(float)":
            raise ConfigError(f"detector.yunet_model '{path}' has the input {inputs[0].name} {shape} {inputs[0].type}. {remedy}")
        name = str(inputs[0].name)
        try:
            values = self._session.run(list(OUTPUTS), {name: np.zeros((1, 3, SIZE_MULTIPLE_PX, 2 * SIZE_MULTIPLE_PX), np.float32)})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ConfigError(f"detector.yunet_model '{path}' does not run on a 64 x 32 picture: {error}. {remedy}") from error
        for output, value in zip(OUTPUTS, values, strict=True):
            kind, stride = output.split("_")
            expected = (1, 2 * (SIZE_MULTIPLE_PX // int(stride)) ** 2, 4 if kind == "bbox" else 1)
            if value.shape != expected:
                raise ConfigError(f"detector.yunet_model '{path}': output '{output}' has shape {value.shape}, not {expected}. {remedy}")
        return name

    def detect(self, frame: Picture, *, near: Sequence[Box] = ()) -> list[Detection]:  # noqa: ARG002  # it needs no hint
        """Faces of `frame`, best score first."""
        picture = _shrink(frame, self._max_side_px)
        height, width = picture.shape[:2]
        tight, scores = self.detect_tight(picture)
        # Back to display pixels of the frame; a display-square box is not square in pixels that are not.
        scale_x, scale_y = frame.width / width, frame.height / height
        smallest = self._min_face_fraction * min(height, width)
        found = []
        for (x, y, w, h), score in zip(tight.tolist(), scores.tolist(), strict=True):
            half = SQUARE_SIDE * h / 2
            if 2 * half < smallest:
                continue
            cx, cy = x + w / 2, y + h / 2 + SQUARE_DROP * h
            found.append(Detection((cx - half) * scale_x, (cy - half) * scale_y, (cx + half) * scale_x, (cy + half) * scale_y, score))
        return sorted(found, key=lambda d: (-d.score, d.box))

    def detect_tight(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """YuNet's own boxes in an RGB picture (height, width, 3): (faces, 4) of x, y, width, height in its pixels, and scores (faces,)."""
        height, width = picture.shape[:2]
        rows, columns = (-(-side // SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX for side in (height, width))
        tensor = np.zeros((1, 3, rows, columns), np.float32)
        tensor[0, :, :height, :width] = picture[:, :, ::-1].transpose(2, 0, 1)
        values = dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), {self._input: tensor}), strict=True))
        boxes, scores = [], []
        for stride in STRIDES:
            confidence = np.sqrt(np.clip(values[f"cls_{stride}"][0, :, 0], 0, 1) * np.clip(values[f"obj_{stride}"][0, :, 0], 0, 1))
            chosen = np.flatnonzero(confidence >= self._score_threshold)
            delta = values[f"bbox_{stride}"][0, chosen]
            cell = np.stack([chosen % (columns // stride), chosen // (columns // stride)], axis=1)
            size = np.exp(delta[:, 2:]) * stride
            boxes.append(np.concatenate([(cell + delta[:, :2]) * stride - size / 2, size], axis=1))
            scores.append(confidence[chosen])
        merged, confidence = np.concatenate(boxes).astype(np.float32), np.concatenate(scores).astype(np.float32)
        kept = cv2.dnn.NMSBoxes(merged.tolist(), confidence.tolist(), self._score_threshold, NMS_IOU, top_k=NMS_CANDIDATES)
        index = np.asarray(kept, np.int64).ravel()
        return merged[index], confidence[index]


def _shrink(frame: Picture, max_side_px: int) -> NDArray[np.uint8]:
    """The whole picture as RGB with square pixels, its longer side at most `max_side_px`."""
    picture = frame.rgb_region(0, 0, frame.width, frame.height)
    wide = frame.width * frame.aspect
    scale = min(1.0, max_side_px / max(wide, frame.height))
    size = max(1, round(wide * scale)), max(1, round(frame.height * scale))
    return picture if size == (frame.width, frame.height) else np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
