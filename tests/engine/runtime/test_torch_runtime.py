"""The torch network as a runtime: ONNX Runtime's numbers, and a network that is left as it was."""

from typing import Any

import numpy as np
import pytest
import torch

from dissonance.bundle import open_bundle
from dissonance.engine.runtime import open_runtime, torch_runtime
from dissonance.engine.runtime.base import HeadOutput, Runtime
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.errors import EnvironmentMissingError
from dissonance.model.checkpoint import load_checkpoint
from tests.model.tiny import FRAMES, first_frames, tiny_network

BUNDLE = open_bundle("demo")
MODEL = BUNDLE.spec.model
FIELDS = tuple(HeadOutput.__dataclass_fields__)


def everything(runtime: Runtime) -> dict[str, np.ndarray]:
    """All that a runtime says of some noise."""
    generator = np.random.default_rng(4)
    crops = generator.integers(0, 256, (5, MODEL.visual.image_size, MODEL.visual.image_size, 3), np.uint8)
    mel = generator.normal(size=(3, MODEL.audio.mel_bins, 4 * MODEL.frames)).astype(np.float32)
    visual = generator.normal(size=(3, MODEL.frames, MODEL.visual.feature_size)).astype(np.float32)
    mask = np.arange(MODEL.frames) < np.array([[MODEL.frames], [11], [1]])
    audio = runtime.encode_sound(mel, mask)
    audio[~np.repeat(mask, 2, axis=1)] = 0.0  # padding means nothing
    head = runtime.run_head(visual, audio, mask)
    return {"frames": runtime.encode_frames(crops, np.arange(5)), "sound": audio, **{name: getattr(head, name) for name in FIELDS}}


def test_it_says_what_onnx_runtime_says() -> None:
    ours = everything(TorchRuntime(load_checkpoint(BUNDLE.path / "weights.safetensors").network))
    for name, expected in everything(open_runtime(BUNDLE, threads=1)).items():
        assert ours[name].dtype == expected.dtype, name
        np.testing.assert_allclose(ours[name], expected, atol=1e-4, err_msg=name)


def test_bfloat16_is_near_and_still_float32_outside() -> None:
    network = load_checkpoint(BUNDLE.path / "weights.safetensors").network
    full, half = everything(TorchRuntime(network)), everything(TorchRuntime(network, precision="bf16"))
    for name in ("frames", "sound", "matched", "logit_fused"):
        assert half[name].dtype == np.float32
        error = np.linalg.norm(half[name] - full[name]) / np.linalg.norm(full[name])
        assert 0 < error < 0.03, name


def test_with_the_kernel_it_says_the_same() -> None:
    """In Triton's interpreter where there is no GPU; not only for whole windows."""
    network = load_checkpoint(BUNDLE.path / "weights.safetensors").network
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = everything(TorchRuntime(network))
    ours = everything(TorchRuntime(network.to(device), device=device, kernel=True))
    for name, expected in plain.items():
        assert ours[name].dtype == expected.dtype, name
        np.testing.assert_allclose(ours[name], expected, atol=1e-4, err_msg=name)


class Replayed:
    """Stands for a CUDA graph: `replay` does again what was captured, on what the places hold then."""

    def __init__(self, function: Any, places: tuple[torch.Tensor, ...]) -> None:
        self.function, self.places, self.results = function, places, function(*places)

    def replay(self) -> None:
        for result, value in zip(self.results, self.function(*self.places), strict=True):
            result.copy_(value)


def test_a_batch_that_does_not_fit_the_memory_runs_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_checkpoint(BUNDLE.path / "weights.safetensors").network
    tried, most = [], 4

    def capture(graphs: torch_runtime._Graphs, places: tuple[torch.Tensor, ...]) -> Any:
        tried.append(len(places[0]))
        if len(places[0]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        graph = Replayed(graphs._function, places)
        return graph, places, graph.results

    monkeypatch.setattr(torch_runtime._Graphs, "_capture", capture)
    runtime = TorchRuntime(network, graphs=True)
    crops = np.random.default_rng(0).integers(0, 256, (23, MODEL.visual.image_size, MODEL.visual.image_size, 3), np.uint8)
    expected = TorchRuntime(network).encode_frames(crops, np.arange(23))
    for rows in (23, 5, 23):
        np.testing.assert_allclose(runtime.encode_frames(crops[:rows], np.arange(rows)), expected[:rows], atol=1e-5)
    assert tried == [32, 16, 8, 4, 1]
    most = 0
    with pytest.raises(EnvironmentMissingError, match=r"too little free memory for the audio encoder with a batch of 1: CUDA out of memory"):
        runtime.encode_sound(np.zeros((1, MODEL.audio.mel_bins, 4 * MODEL.frames), np.float32), np.ones((1, MODEL.frames), np.bool_))


def test_a_gpu_that_is_lost_is_one_error_that_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    runtime = TorchRuntime(tiny_network())
    monkeypatch.setattr(runtime, "_visual", lost)
    with pytest.raises(EnvironmentMissingError, match=r"The GPU failed \(CUDA error: an illegal memory access was encountered\)\. .*--resume"):
        runtime.encode_frames(np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("error", "becomes", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            EnvironmentMissingError,
            "too little free memory for this model: CUDA out",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCompile with"),
            EnvironmentMissingError,
            "too little free memory for this model: CUDA err",
        ),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access"), EnvironmentMissingError, r"The GPU failed \(Triton Error"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), EnvironmentMissingError, r"The GPU failed \(cuDNN error"),
        (RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"), RuntimeError, "same device"),
    ],
)
def test_errors_of_a_gpu_are_told_from_our_own(monkeypatch: pytest.MonkeyPatch, error: RuntimeError, becomes: type[Exception], says: str) -> None:
    def fail(*_: object) -> None:
        raise error

    runtime = TorchRuntime(tiny_network())
    monkeypatch.setattr(runtime, "_visual", fail)
    with pytest.raises(becomes, match=says):
        runtime.encode_frames(np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, np.int64))


def test_a_frame_s_place_in_the_window_counts_under_per_frame_prompts() -> None:
    network = tiny_network(prompts={"per_frame": True})
    crop = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    features = TorchRuntime(network).encode_frames(np.repeat(crop, FRAMES, axis=0), np.arange(FRAMES)[::-1].copy())
    with torch.no_grad():
        expected = network.encode_visual(torch.from_numpy(np.repeat(crop, FRAMES, axis=0)).permute(0, 3, 1, 2)[None] / 255.0)[0].flip(0)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize("call", ["frames", "sound", "head", "failed"])
def test_a_network_in_training_goes_on_as_it_was(call: str) -> None:
    """Evaluated in eval mode, as the same network would be; each module's own mode is back afterwards, after an error too."""
    network = tiny_network()
    network.train()
    network.visual.eval()  # frozen, say
    modes = [module.training for module in network.modules()]
    seen: list[bool] = []
    for part in (network.visual, network.audio, network.head):
        part.register_forward_hook(lambda module, *_: seen.append(any(inner.training for inner in module.modules())))
    runtime, mask = TorchRuntime(network), first_frames(FRAMES).numpy()
    state = torch.get_rng_state()
    if call == "frames":
        runtime.encode_frames(np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, np.int64))
    elif call == "sound":
        runtime.encode_sound(np.zeros((1, 10, 4 * FRAMES), np.float32), mask)
    elif call == "head":
        runtime.run_head(np.zeros((1, FRAMES, 16), np.float32), np.zeros((1, 2 * FRAMES, 16), np.float32), mask)
    else:
        with pytest.raises(RuntimeError):
            runtime.encode_sound(np.zeros((1, 3, 4 * FRAMES), np.float32), mask)
    assert seen == ([] if call == "failed" else [False])
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    loss = network(torch.rand(1, FRAMES, 3, 16, 16), torch.rand(1, 10, 4 * FRAMES), first_frames(FRAMES)).logit_fused.sum()
    loss.backward()  # what was computed in between must not have made weights that cannot be trained
    assert any(parameter.grad is not None for parameter in network.parameters())
