"""What only a GPU can prove of the torch runtime: CUDA graphs, and 16 bits there. No GPU has run these yet."""

import numpy as np
import pytest
import torch

from dissonance.bundle import Precision, open_bundle
from dissonance.engine.runtime import open_runtime
from tests.engine.runtime.test_torch_runtime import everything

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; PyTorch finds none here")]

BUNDLE = open_bundle("demo")


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("fp16", 5e-3), ("bf16", 3e-2)])
def test_graphs_say_what_the_cpu_says(precision: Precision, tolerance: float) -> None:
    """Twice: the second time the graphs are there already."""
    expected = everything(open_runtime(BUNDLE, name="torch", device="cpu"))
    runtime = open_runtime(BUNDLE, name="torch", device="cuda", precision=precision)
    for _ in range(2):
        found = everything(runtime)
        for name in ("frames", "sound", "matched", "logit_visual", "logit_audio", "logit_fused"):
            error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
            assert error <= tolerance, name


def test_a_batch_that_is_smaller_than_its_graph_says_the_same() -> None:
    runtime, size = open_runtime(BUNDLE, name="torch", device="cuda", precision="bf16"), BUNDLE.spec.model.visual.image_size
    crops = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    whole = runtime.encode_frames(crops, np.arange(8))
    for rows in (5, 6, 7):
        np.testing.assert_array_equal(runtime.encode_frames(crops[:rows], np.arange(rows)), whole[:rows])
