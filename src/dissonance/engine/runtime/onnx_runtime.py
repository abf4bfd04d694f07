"""The bundle's ONNX graphs through ONNX Runtime, on a CPU or with CUDA."""

import importlib
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import Bundle, Precision, graph_file
from dissonance.engine.runtime.base import HEAD_OUTPUTS, FloatArray, HeadOutput, Runtime
from dissonance.engine.runtime.buckets import MOST_ROWS, Buckets, GpuMemoryError, gpu_failed, is_out_of_memory, names_the_gpu
from dissonance.errors import BundleError, EnvironmentMissingError, missing_extra
from dissonance.machine import available_cores

GRAPHS = ("visual.onnx", "audio.onnx", "head.onnx")


class OnnxRuntime(Runtime):
    """`Runtime` over ONNX Runtime.

    Thread spinning is off: an idle inference thread must not burn the core that a decoder needs.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: Precision = "float32",
        threads: int = 0,
        graphs: Collection[str] = GRAPHS,
    ) -> None:
        """`graphs`: those of GRAPHS that are loaded; the others' methods are not to be called."""
        try:
            ort = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise missing_extra("onnxruntime", "gpu" if device == "cuda" else "cpu", "Scoring") from error
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        if provider not in ort.get_available_providers():
            raise EnvironmentMissingError(
                f"--device {device} needs ONNX Runtime's {provider}; this installation has {', '.join(ort.get_available_providers())}. "
                "Install it with: pip uninstall onnxruntime; pip install 'dissonance[gpu]'"
            )
        if precision == "bf16":
            raise EnvironmentMissingError("ONNX Runtime has no bf16 for this model. Choose another precision: float32, fp16 or int8.")
        if precision not in bundle.spec.precisions:
            raise BundleError(
                f"Bundle '{bundle.path}' has no {precision} encoders, only {', '.join(bundle.spec.precisions)}. "
                f"Export it again with --precision {precision}."
            )
        self.name = f"onnxruntime-{device}" + ("" if precision == "float32" else f"-{precision}")
        self.precision: Precision = precision
        self._bundle = bundle
        self._on_gpu = device == "cuda"
        self._per_frame = bundle.spec.model.visual.prompts.per_frame
        self._sessions = {graph: self._session(ort, graph_file(graph, precision), provider, threads) for graph in graphs}

    def _session(self, ort: Any, name: str, provider: str, threads: int) -> "_Session":
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            settings = {"use_tf32": "0"} if self._on_gpu else {}  # float32 is float32
            return _Session(ort.InferenceSession(self._bundle.read(name), options, providers=[(provider, settings)]), name, self._on_gpu)
        except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
            raise BundleError(f"Bundle '{self._bundle.path}': ONNX Runtime {ort.__version__} cannot load '{name}': {error}") from error

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        feeds: dict[str, NDArray[Any]] = {"crops": crops}
        if self._per_frame:
            feeds["frame_index"] = frame_index
        features: FloatArray = self._sessions["visual.onnx"].run(("features",), feeds)[0]
        return features

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        features: FloatArray = self._sessions["audio.onnx"].run(("features",), {"mel": mel, "mask": mask})[0]
        return features

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        return HeadOutput(*self._sessions["head.onnx"].run(HEAD_OUTPUTS, {"visual": visual, "audio": audio, "mask": mask}))


class _Session:
    """One graph of the bundle."""

    def __init__(self, session: Any, name: str, on_gpu: bool) -> None:
        self._session = session
        self._buckets = Buckets(name, largest=MOST_ROWS) if on_gpu else None

    def run(self, outputs: tuple[str, ...], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What the graph says of a batch; on a GPU in smaller parts where its memory does not suffice."""
        if self._buckets is None:
            values: list[NDArray[Any]] = self._session.run(list(outputs), feeds)
            return values
        parts: list[list[NDArray[Any]]] = []

        def part(rows: slice, _size: int) -> None:
            try:
                parts.append(self._session.run(list(outputs), {name: value[rows] for name, value in feeds.items()}))
            except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
                if is_out_of_memory(str(error)):
                    raise GpuMemoryError(str(error)[:200]) from error
                if names_the_gpu(str(error)):
                    raise gpu_failed(str(error)) from error
                raise

        self._buckets.run(len(next(iter(feeds.values()))), part)
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
