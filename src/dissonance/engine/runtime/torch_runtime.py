"""The torch network itself as a runtime: what a network scores while it is being trained, and a GPU path that needs nothing but torch.

On a GPU `open_torch_runtime` runs the encoders and the head as CUDA graphs, one for each batch size in powers of two: one launch a batch instead of
hundreds; and it matches and fuses with the Triton kernel. No GPU has run that yet.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dissonance.bundle import Bundle, Precision
from dissonance.engine.runtime.base import FloatArray, HeadOutput, Runtime
from dissonance.engine.runtime.buckets import MOST_ROWS, Buckets, GpuMemoryError, gpu_failed, gpu_full, is_out_of_memory, names_the_gpu
from dissonance.errors import BundleError, CheckpointError, EnvironmentMissingError
from dissonance.machine import is_installed
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import AudioVisualNetwork

AUTOCAST: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = "weights.safetensors"

Function = Callable[..., tuple[Tensor, ...]]


class TorchRuntime(Runtime):
    """`Runtime` over a network that stays where it is and as it is: weights, training mode and random state are not touched.

    precision: fp16 and bf16 run the encoders' products under autocast; weights, features and the head stay in float32.
    """

    def __init__(
        self, network: AudioVisualNetwork, *, device: str = "cpu", precision: Precision = "float32", graphs: bool = False, kernel: bool = False
    ) -> None:
        """`device` is where the network's weights are. For weights that do not change, on a GPU: `graphs`, CUDA graphs; `kernel`, `match_fuse`.

        Raises EnvironmentMissingError for a precision that torch does not have.
        """
        if precision != "float32" and precision not in AUTOCAST:
            raise EnvironmentMissingError(f"The torch runtime has no {precision}. Choose another precision: float32, {', '.join(AUTOCAST)}.")
        self._device = torch.device(device)
        self.name = "torch" if self._device.type == "cpu" and precision == "float32" else f"torch-{self._device.type}-{precision}"
        self.precision: Precision = precision
        self._network = network
        head: Function = _with_kernel(network) if kernel else self._run_head
        functions: dict[str, Function] = {"the visual encoder": self._encode_frames, "the audio encoder": self._encode_sound, "the head": head}
        self._visual, self._audio, self._head = (_Graphs(part, function) if graphs else function for part, function in functions.items())

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        with self._inference():
            return _floats(self._visual(self._tensor(crops), self._tensor(frame_index))[0])

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        with self._inference():
            return _floats(self._audio(self._tensor(mel), self._tensor(mask))[0])

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        with self._inference():
            picture, sound, fused, matched, profile, lag_valid, best_lag = self._head(*map(self._tensor, (visual, audio, mask)))
            return HeadOutput(
                logit_visual=_floats(picture),
                logit_audio=_floats(sound),
                logit_fused=_floats(fused),
                matched=_floats(matched),
                lag_profile=_floats(profile),
                lag_valid=lag_valid.cpu().numpy(),
                best_lag=best_lag.cpu().numpy(),
            )

    def _encode_frames(self, crops: Tensor, frame_index: Tensor) -> tuple[Tensor, ...]:
        visual = self._network.visual
        with self._autocast():
            return (visual(crops.permute(0, 3, 1, 2).float() / 255.0, frame_index if visual.takes_frame_index else None).float(),)

    def _encode_sound(self, mel: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        with self._autocast():
            return (self._network.audio(mel, mask).float(),)

    def _run_head(self, visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        output = self._network.head(visual, audio, mask)
        match = output.match
        return output.logit_visual, output.logit_audio, output.logit_fused, match.matched, match.lag_profile, match.lag_valid, match.best_lag

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array)).to(self._device)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self._device.type, dtype, enabled=dtype is not None, cache_enabled=False)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients and no dropout inside; every module's own mode again after it, for a frozen part may be kept in eval while others train."""
        training = [module for module in self._network.modules() if module.training]
        self._network.eval()
        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            told = str(error).partition("\n")[0]
            if _is_full(error):
                raise gpu_full("this model", told) from error
            if isinstance(error, torch.AcceleratorError) or names_the_gpu(told):
                raise gpu_failed(told) from error
            raise
        finally:
            for module in training:
                module.training = True


class _Graphs:
    """A function of tensors with as many rows each, as CUDA graphs: one for each number of rows in powers of two, captured when it is first needed.

    A smaller batch leaves the last rows as an earlier one filled them: no row depends on its batch mates.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._function = function
        self._buckets = Buckets(name, largest=MOST_ROWS)
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: list[tuple[Tensor, ...]] = []

        def part(rows: slice, size: int) -> None:
            told = None
            if size not in self._captured:
                try:
                    self._captured[size] = self._capture(tuple(each.new_zeros(size, *each.shape[1:]) for each in inputs))
                except RuntimeError as error:
                    if not _is_full(error):
                        raise
                    told = str(error).partition("\n")[0]
            if told is not None:
                torch.cuda.empty_cache()  # here, where no exception keeps tensors alive any more
                raise GpuMemoryError(told)
            graph, places, results = self._captured[size]
            count = rows.stop - rows.start
            for place, given in zip(places, inputs, strict=True):
                place[:count].copy_(given[rows])
            graph.replay()
            found.append(tuple(result[:count].clone() for result in results))

        self._buckets.run(len(inputs[0]), part)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _capture(self, places: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, ...]]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # what libraries allocate when first called must not be captured
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._function(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._function(*places)
        return graph, places, results


def open_torch_runtime(bundle: Bundle, *, device: Literal["auto", "cpu", "cuda"], precision: Precision, threads: int) -> TorchRuntime:
    """A bundle's weights as a runtime; `auto` is a GPU where torch finds one. `threads` of the CPU are set for the whole process, 0 leaves them.

    Raises EnvironmentMissingError, BundleError.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentMissingError("--device cuda: PyTorch finds no GPU here. Use --device cpu, or see `dissonance doctor`.")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    bundle.read(WEIGHTS)  # is what bundle.json says
    try:
        network = load_checkpoint(bundle.path / WEIGHTS).network
    except CheckpointError as error:
        raise BundleError(f"Bundle '{bundle.path}': {error}") from error
    if network.config != bundle.spec.model:
        raise BundleError(f"Bundle '{bundle.path}': '{WEIGHTS}' is of another model than bundle.json. Export the bundle again.")
    if threads:
        torch.set_num_threads(threads)
    on_gpu, triton = chosen == "cuda", is_installed("triton")
    if on_gpu and precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # else convolutions alone would not be float32
    return TorchRuntime(network.to(chosen), device=chosen, precision=precision, graphs=on_gpu, kernel=on_gpu and triton)


def _with_kernel(network: AudioVisualNetwork) -> Function:
    """`TorchRuntime._run_head` by the Triton kernel: S never is in device memory."""
    from dissonance.kernels.match_fuse import Options, match_fuse
    from dissonance.kernels.weights import FusionWeights

    head = network.head
    options = Options(head.tau, head.max_lag)
    weights = FusionWeights.pack(head.fusion.proj.weight.detach(), head.fusion.proj.bias.detach(), dim=network.config.head.dim)

    def run(visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        v, a = head.align(visual, audio, mask)
        found = match_fuse(v, a, mask, weights, options)
        return *head.tail(found.fused, v, a, mask), found.matched, found.lag_profile, found.lag_valid, found.best_lag

    return run


def _is_full(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(str(error))


def _floats(values: Tensor) -> FloatArray:
    found: FloatArray = values.float().cpu().numpy()
    return found
