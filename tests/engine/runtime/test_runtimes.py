"""Every runtime that can run here against the torch network with the same weights; no row depends on its batch mates."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dissonance.bundle import BundleSpec, open_bundle, write_bundle
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.runtime.onnx_runtime import OnnxRuntime, _Session
from dissonance.errors import BundleError, EnvironmentMissingError
from dissonance.model.checkpoint import load_checkpoint

BUNDLE = open_bundle("demo")
MODEL = BUNDLE.spec.model
RNG = np.random.default_rng(4)
CROPS = RNG.integers(0, 256, (5, MODEL.visual.image_size, MODEL.visual.image_size, 3), np.uint8)
MEL = RNG.normal(size=(3, MODEL.audio.mel_bins, 4 * MODEL.frames)).astype(np.float32)
MASK = np.arange(MODEL.frames) < np.array([[MODEL.frames], [11], [1]])
HEAD_INPUTS = (
    RNG.normal(size=(3, MODEL.frames, MODEL.visual.feature_size)).astype(np.float32),
    RNG.normal(size=(3, 2 * MODEL.frames, MODEL.audio.hidden_size)).astype(np.float32),
    MASK,
)


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return open_runtime(BUNDLE, name=request.param, device="cpu", threads=1)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return load_checkpoint(BUNDLE.path / "weights.safetensors").network.eval()


def test_crops_go_in_as_rgb_from_0_to_1(runtime: Runtime, network: torch.nn.Module) -> None:
    features = runtime.encode_frames(CROPS, np.arange(5))
    with torch.no_grad():
        expected = network.visual(torch.from_numpy(CROPS).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_sound_and_head(runtime: Runtime, network: torch.nn.Module) -> None:
    audio = runtime.encode_sound(MEL, MASK)
    visual = RNG.normal(size=(3, MODEL.frames, MODEL.visual.feature_size)).astype(np.float32)
    output = runtime.run_head(visual, audio, MASK)
    with torch.no_grad():
        expected_audio = network.audio(torch.from_numpy(MEL), torch.from_numpy(MASK))
        expected = network.head(torch.from_numpy(visual), expected_audio, torch.from_numpy(MASK))
    valid = np.repeat(MASK, 2, axis=1)
    np.testing.assert_allclose(audio[valid], expected_audio.numpy()[valid], atol=1e-5)
    for name in ("logit_visual", "logit_audio", "logit_fused"):
        np.testing.assert_allclose(getattr(output, name), getattr(expected, name).numpy(), atol=1e-5, err_msg=name)
    for name in ("matched", "lag_profile", "lag_valid", "best_lag"):
        np.testing.assert_allclose(getattr(output, name), getattr(expected.match, name).numpy(), atol=1e-5, err_msg=name)


def test_no_row_depends_on_its_batch_mates(runtime: Runtime) -> None:
    hostile = np.concatenate([CROPS, np.full_like(CROPS[:1], 255), np.zeros_like(CROPS[:1])])
    together = runtime.encode_frames(hostile, np.arange(len(hostile)))
    alone = np.concatenate([runtime.encode_frames(hostile[row : row + 1], np.array([row])) for row in range(len(hostile))])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    audio = runtime.encode_sound(MEL, MASK)
    for row in range(len(MEL)):
        np.testing.assert_allclose(audio[row], runtime.encode_sound(MEL[row : row + 1], MASK[row : row + 1])[0], atol=1e-5)


class FailingSession:
    """A session on a GPU that holds `most` rows, or has been lost."""

    def __init__(self, real: Any, *, most: int) -> None:
        self.real, self.most, self.tried, self.lost = real, most, list[int](), False

    def run(self, outputs: list[str], feeds: dict[str, Any]) -> Any:
        rows = len(next(iter(feeds.values())))
        self.tried.append(rows)
        if self.lost:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure")
        if rows > self.most:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9663676416")
        return self.real.run(outputs, feeds)


def test_onnx_runtime_on_a_gpu_runs_smaller_batches_where_memory_is_short_and_says_when_the_gpu_is_lost() -> None:
    plain, runtime = OnnxRuntime(BUNDLE, threads=1), OnnxRuntime(BUNDLE, threads=1)
    session = FailingSession(runtime._sessions["visual.onnx"]._session, most=2)
    runtime._sessions["visual.onnx"] = _Session(session, "visual.onnx", on_gpu=True)
    runtime._sessions["head.onnx"] = _Session(runtime._sessions["head.onnx"]._session, "head.onnx", on_gpu=True)
    np.testing.assert_allclose(runtime.encode_frames(CROPS, np.arange(5)), plain.encode_frames(CROPS, np.arange(5)), atol=1e-5)
    assert session.tried == [5, 4, 2, 2, 1]
    for ours, theirs in zip(astuple(runtime.run_head(*HEAD_INPUTS)), astuple(plain.run_head(*HEAD_INPUTS)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    session.most = 0
    with pytest.raises(EnvironmentMissingError, match=r"too little free memory for visual\.onnx with a batch of 1: .*Failed to allocate"):
        runtime.encode_frames(CROPS, np.arange(5))
    session.lost = True
    with pytest.raises(EnvironmentMissingError, match=r"The GPU failed \(.*CUDA failure 719.*continue with --resume"):
        runtime.encode_frames(CROPS, np.arange(5))
    with pytest.raises(Exception, match="frame_index"):  # our bug is not the GPU's
        runtime._sessions["head.onnx"].run(("logit_fused",), {"frame_index": np.arange(3)})


def test_a_graph_that_is_none_is_a_bad_bundle(tmp_path: Path) -> None:
    names = [path.name for path in BUNDLE.path.iterdir() if path.name != "bundle.json"]
    files = {name: (BUNDLE.path / name).read_bytes() for name in names}
    spec = BundleSpec.model_validate(BUNDLE.spec.model_dump())
    bundle = write_bundle(tmp_path / "b", spec, {**files, "audio.onnx": b"not a graph"})
    with pytest.raises(BundleError, match=r"cannot load 'audio\.onnx'"):
        open_runtime(bundle)


def test_weights_that_are_not_the_bundle_s_are_a_bad_bundle(tmp_path: Path) -> None:
    names = [path.name for path in BUNDLE.path.iterdir() if path.name != "bundle.json"]
    files = {name: (BUNDLE.path / name).read_bytes() for name in names}
    spec = BundleSpec.model_validate(BUNDLE.spec.model_dump())
    other = spec.model_copy(update={"model": MODEL.model_copy(update={"hop": MODEL.hop // 2})})
    for number, (wrong, weights, message) in enumerate(
        [
            (spec, b"no weights", r"Cannot read checkpoint .*weights\.safetensors"),
            (other, files["weights.safetensors"], r"'weights\.safetensors' is of another model than bundle\.json"),
        ]
    ):
        bundle = write_bundle(tmp_path / str(number), wrong, {**files, "weights.safetensors": weights})
        with pytest.raises(BundleError, match=message):
            open_runtime(bundle, name="torch")
    (bundle.path / "weights.safetensors").write_bytes(b"changed since")
    with pytest.raises(BundleError, match=r"'weights\.safetensors' was changed"):
        open_runtime(bundle, name="torch")


def test_a_precision_that_torch_does_not_have_is_named() -> None:
    with pytest.raises(EnvironmentMissingError, match=r"no int8\. Choose another precision: float32, fp16, bf16"):
        open_runtime(BUNDLE, name="torch", precision="int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_does_not_find_is_named() -> None:
    with pytest.raises(EnvironmentMissingError, match=r"--device cuda: PyTorch finds no GPU here\. Use --device cpu"):
        open_runtime(BUNDLE, name="torch", device="cuda")


def test_a_device_that_is_not_here_is_named() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentMissingError, match=r"dissonance\[gpu\]"):
        open_runtime(BUNDLE, device="cuda")
