"""Folded encoders give the features of those that they were made of, with less work, and no learned prompt is computed with at run time."""

import itertools
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dissonance.config import load_preset
from dissonance.errors import UsageError
from dissonance.export.fold import Folded, FoldedAudioEncoder, FoldedVisualEncoder
from dissonance.export.folds import FOLDS, Fold, folds_without
from dissonance.export.onnx import export_graph, graphs
from dissonance.model.audio import AudioEncoder
from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.model.visual import VisualEncoder
from tests.model.tiny import FRAMES, first_frames, tiny_network

CARRIES, READOUTS = ("accumulate", "replace"), ("cls", "prompt", "cls+prompt")
FORMS = [
    {"carry": carry, "per_frame": per_frame, "readout": readout, "count": count}
    for carry, per_frame, readout, count in itertools.product(CARRIES, (False, True), READOUTS, (1, 2, 3))
]
AUDIO_FORMS = [{"form": "residual"}, {"form": "prepend", "count": 1}, {"form": "prepend", "count": 4}, {"form": "none"}]
SUBSETS = [frozenset(chosen) for size in range(len(FOLDS) + 1) for chosen in itertools.combinations(sorted(FOLDS), size)]


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the features' norm."""
    return ((found - expected).abs().max() / expected.flatten(0, -2).norm(dim=-1).mean()).item()


def seen(network: AudioVisualNetwork, count: int = 5) -> tuple[Tensor, ...]:
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return (pixels, torch.tensor([3, 0, 5, 5, 1][:count])) if network.visual.takes_frame_index else (pixels,)


def heard(count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 10, 4 * FRAMES, generator=torch.Generator().manual_seed(2)), first_frames(FRAMES, 4, 1, 0)[:count]


@pytest.mark.parametrize("form", FORMS, ids=str)
@torch.inference_mode()
def test_every_form_of_visual_prompts_folds(form: dict[str, Any]) -> None:
    network = tiny_network(prompts=form)
    expected = network.visual(*seen(network))
    assert error(Folded(network).visual(*seen(network)), expected) < 1e-5
    assert expected.std() > 0.1


@pytest.mark.parametrize("form", AUDIO_FORMS, ids=str)
@torch.inference_mode()
def test_every_form_of_sound_prompts_folds(form: dict[str, Any]) -> None:
    network = tiny_network(audio_prompts=form)
    mel, mask = heard()
    valid = mask.repeat_interleave(2, dim=1)
    assert error(Folded(network).audio(mel, mask)[valid], network.audio(mel, mask)[valid]) < 1e-5


@pytest.mark.parametrize("preset", ["demo", "base"])
@torch.inference_mode()
def test_the_presets_fold_in_every_form(preset: str) -> None:
    """With prompts as large as the tokens that they join."""
    model, generator = load_preset(preset), torch.Generator().manual_seed(4)
    network = build_network(model, seed=0).eval()
    visual, index = network.visual, torch.tensor([1])
    pixels = torch.rand(1, 3, model.visual.image_size, model.visual.image_size, generator=generator)
    for carry, per_frame, readout in itertools.product(CARRIES, (False, True), READOUTS):
        prompts = model.visual.prompts.model_copy(update={"carry": carry, "per_frame": per_frame, "readout": readout, "count": 1})
        visual.config = model.visual.model_copy(update={"prompts": prompts})
        shape = (2 if per_frame else 1, model.visual.layers, 1, model.visual.hidden_size)
        visual.prompts = nn.Parameter(torch.randn(shape, generator=generator))
        assert error(FoldedVisualEncoder(visual, FOLDS)(pixels, index), visual(pixels, index)) < 1e-5, (carry, per_frame, readout)
    for form in ("residual", "prepend", "none"):
        prompts = model.audio.prompts.model_copy(update={"form": form, "count": 4})
        sound = AudioEncoder(model.audio.model_copy(update={"prompts": prompts}), frames=4)
        for name, parameter in sound.named_parameters():
            if "prompt" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.02 if name.endswith("weight") else 1))
        mel = torch.randn(2, model.audio.mel_bins, 16, generator=generator)
        mask = torch.ones(2, 4, dtype=torch.bool)
        assert error(FoldedAudioEncoder(sound, FOLDS)(mel, mask), sound(mel, mask)) < 1e-5, form


@pytest.mark.parametrize("folds", SUBSETS, ids=lambda folds: "+".join(sorted(folds)) or "none")
@torch.inference_mode()
def test_each_fold_can_be_left_out(folds: frozenset[Fold]) -> None:
    for carry, audio_form in zip(CARRIES, ("residual", "prepend"), strict=True):
        network = tiny_network(prompts={"carry": carry, "per_frame": True, "count": 2}, audio_prompts={"form": audio_form})
        folded, (mel, mask) = Folded(network, folds), heard(2)
        assert error(folded.visual(*seen(network)), network.visual(*seen(network))) < 1e-5
        assert error(folded.audio(mel, mask)[:1], network.audio(mel, mask)[:1]) < 1e-5


def test_a_fold_is_left_out_by_its_name() -> None:
    assert folds_without(["rows", "rows", "scale"]) == {"pixels", "prompts", "sound"}
    with pytest.raises(UsageError, match=r"Invalid --no-fold 'row'\. Supported values are pixels, prompts, rows, scale, sound\."):
        folds_without(["row"])


def test_a_network_stays_as_it_is_and_shares_nothing_with_its_fold() -> None:
    network = tiny_network(prompts={"count": 2})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = Folded(network)
    for tensor in folded.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------- cost


def flops(module: nn.Module, *example: Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(*example)
    found: int = counter.get_total_flops()
    return found


def of_layer(size: int, inner: int, *, normed: int, queries: int, keys: int, fresh: int = 0) -> int:
    """Twice a layer's multiplications: key and value of `normed` rows, query of all but the `fresh` of the `queries`, the rest of these."""
    return 4 * normed * size**2 + 2 * (queries - fresh) * size**2 + 4 * queries * keys * size + 2 * queries * size**2 + 4 * queries * size * inner


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("preset", ["demo", "base"])
def test_the_operations_of_a_frame_are_those_of_the_closed_form(carry: str, readout: str, preset: str) -> None:
    """Folded, no query, key or value of a fresh prompt is computed, nothing of one that is thrown away, and of the last layer what is read out."""
    config = load_preset(preset).visual
    k, size, inner, tokens = 2, config.hidden_size, config.intermediate_size, (config.image_size // config.patch_size) ** 2 + 1
    prompts = config.prompts.model_copy(update={"carry": carry, "readout": readout, "count": k})
    with torch.device("meta"), torch.no_grad():
        encoder = VisualEncoder(config.model_copy(update={"prompts": prompts}), frames=4)
        folded = FoldedVisualEncoder(encoder, FOLDS)
    pixels = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    before = after = 2 * (tokens - 1) * 3 * config.patch_size**2 * size
    for number in range(config.layers):
        below = tokens + (number * k if carry == "accumulate" else 0)
        before += of_layer(size, inner, normed=below + k, queries=below + k, keys=below + k)
        asked, fresh = (below, k if carry == "accumulate" else 0)
        if number == config.layers - 1:
            asked, fresh = {"cls": (2, 0), "prompt": (1, k), "cls+prompt": (1, k)}[readout]
        after += of_layer(size, inner, normed=below, queries=asked + fresh, keys=below + k, fresh=fresh)
    assert (flops(encoder, pixels), flops(folded, pixels)) == (before, after)
    assert after < before


@pytest.mark.parametrize("form", ["residual", "prepend", "none"])
def test_the_operations_of_a_window_s_sound_are_those_of_the_closed_form(form: str) -> None:
    config = load_preset("base").audio
    k, frames, size, inner = 3, 4, config.hidden_size, config.intermediate_size
    with torch.device("meta"), torch.no_grad():
        encoder = AudioEncoder(config.model_copy(update={"prompts": config.prompts.model_copy(update={"form": form, "count": k})}), frames=frames)
        folded = FoldedAudioEncoder(encoder, FOLDS)
        example = torch.empty(1, config.mel_bins, 4 * frames), torch.ones(1, frames, dtype=torch.bool)
    tokens, fresh = 2 * frames, k if form == "prepend" else 0
    before = after = 2 * 3 * size * (4 * frames * config.mel_bins + tokens * size)
    for number in range(config.layers):
        before += of_layer(size, inner, normed=tokens + fresh, queries=tokens + fresh, keys=tokens + fresh)
        new = fresh if number == 0 else 0
        after += of_layer(size, inner, normed=tokens + fresh - new, queries=tokens + fresh, keys=tokens + fresh, fresh=new)
        if form == "residual":
            before += 2 * 2 * tokens * size**2
            after += 2 * tokens * size**2
    assert (flops(encoder, *example), flops(folded, *example)) == (before, after)


# -------------------------------------------------------------------------------------------------------------- graphs


def rows_of(data: bytes) -> dict[str, list[int]]:
    """How many rows of a frame each LayerNormalization works on, each product with a weight, and each constant that is joined to something has."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.value_info}
    found: dict[str, list[int]] = {"LayerNormalization": [], "MatMul": [], "Concat": []}
    for node in model.graph.node:
        first, *others = node.input
        if node.op_type == "Expand" and first in constants:
            constants.add(node.output[0])  # the same for every frame of the batch
        elif node.op_type == "Concat":
            found["Concat"] += [shapes[name][-2] for name in node.input if name in constants and len(shapes.get(name, [])) == 3]
        elif node.op_type in ("LayerNormalization", "MatMul", "Gemm") and constants & set(others) and len(shapes[first]) == 3:
            found["MatMul" if node.op_type == "Gemm" else node.op_type].append(shapes[first][-2])
        else:
            assert node.op_type not in ("LayerNormalization", "MatMul", "Gemm") or first not in constants, "a constant is computed with at run time"
    return found


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("carry", CARRIES)
def test_no_prompt_meets_a_norm_or_a_weight_before_it_has_attended(carry: str, readout: str) -> None:
    """By the rows that each works on: 5 tokens, and 3 prompts a layer. In `replace` one constant joins a layer's keys, and one its values."""
    network = tiny_network(layers=3, prompts={"carry": carry, "readout": readout, "count": 3})
    found = rows_of(export_graph(graphs(network)[0]))
    norms, products = [5], []  # CLIP's norm before the layers; the patches' product is a convolution
    for number in range(3):
        below = 5 + (3 * number if carry == "accumulate" else 0)
        asked, after = below, below + (3 if carry == "accumulate" else 0)
        if number == 2:
            asked, after = {"cls": (2, 2), "prompt": (1, 4), "cls+prompt": (1, 4)}[readout]
        norms += [below, after]
        products += [asked, below, below, after, after, after]
    assert sorted(found["LayerNormalization"]) == sorted(norms + ([3] if readout != "cls" else []))  # CLIP's norm after the layers
    assert sorted(found["MatMul"]) == sorted(products)
    if carry == "replace":
        assert found["Concat"].count(3) == 2 * 3 + (2 if readout != "cls" else 0)  # prompts that are read out also ask, and are added to
