"""The whole network: what trains, what is frozen, how many numbers that is, and where training starts."""

import pytest
import torch

from dissonance.config import load_preset
from dissonance.errors import ConfigError
from dissonance.model.network import AudioVisualNetwork, build_network, count_parameters, parameter_table
from tests.model.tiny import FRAMES, tiny_config, tiny_network


def test_parameters_by_group_are_what_the_sizes_say() -> None:
    size, inner, layers, dim, fused, k = 16, 24, 3, 8, 12, 2
    layer = 4 * (size * size + size) + 2 * size * inner + size + inner + 4 * size
    counts = count_parameters(tiny_network(prompts={"count": k, "per_frame": True}))
    assert counts["visual_prompts"] == FRAMES * layers * k * size
    assert counts["visual_backbone"] == layers * layer + size + 3 * 8 * 8 * size + 5 * size + 4 * size
    assert counts["audio_prompts"] == layers * (size * 2 * size + 2 * FRAMES * size)
    assert counts["audio_backbone"] == layers * (layer - size) + 3 * 10 * size + size + 3 * size * size + size + 2 * size
    assert counts["alignment"] == size * dim + 2 * size * dim + 2 * dim + 4 * dim
    assert counts["fusion"] == (4 * dim + 2) * fused + fused
    assert counts["total"] == sum(value for name, value in counts.items() if name not in ("total", "trainable")) == counts["trainable"]


@pytest.mark.parametrize(("form", "expected"), [("none", 0), ("prepend", 4 * 16)])
def test_audio_prompts_of_the_other_forms_are_counted(form: str, expected: int) -> None:
    assert count_parameters(tiny_network(audio_prompts={"form": form}))["audio_prompts"] == expected


def test_a_backbone_from_a_checkpoint_is_frozen_and_its_prompts_are_not() -> None:
    config = tiny_config()
    visual = config.visual.model_copy(update={"backbone": "some/clip"})
    network = build_network(config.model_copy(update={"visual": visual}), seed=0)
    counts = count_parameters(network)
    assert counts["trainable"] == counts["total"] - counts["visual_backbone"]
    network(torch.rand(2, FRAMES, 3, 16, 16), torch.randn(2, 10, 4 * FRAMES), torch.ones(2, FRAMES, dtype=torch.bool)).logit_fused.sum().backward()
    assert network.visual.prompts is not None
    assert network.visual.prompts.grad is not None
    assert network.visual.layers[0].fc1.weight.grad is None
    table = parameter_table(network)
    assert "frozen" in table.splitlines()[1]
    assert "trained" in table.splitlines()[0]


def test_base_has_the_few_million_trainable_parameters_of_prompt_tuning() -> None:
    with torch.device("meta"):
        counts = count_parameters(AudioVisualNetwork(load_preset("base")))
    assert 4_000_000 < counts["trainable"] < 7_000_000
    assert counts["visual_prompts"] == 12 * 768


def test_residual_prompts_start_as_frozen_whisper_and_can_leave_it() -> None:
    mel, mask = torch.randn(2, 10, 4 * FRAMES), torch.ones(2, FRAMES, dtype=torch.bool)
    prompted = build_network(tiny_config(), seed=0).audio
    bare = build_network(tiny_config(audio_prompts={"form": "none"}), seed=1).audio
    bare.load_state_dict({name: value for name, value in prompted.state_dict().items() if not name.startswith("residual_prompts")})
    assert torch.equal(prompted(mel, mask), bare(mel, mask))
    (prompted(mel, mask) ** 3).sum().backward()
    assert all(bool((prompt.weight.grad != 0).any()) for prompt in prompted.residual_prompts)
    assert prompted.residual_prompts[0].tokens.std().item() == pytest.approx(0.02, rel=0.3)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    network = tiny_network(prompts={"count": 2})
    out = network(torch.rand(2, FRAMES, 3, 16, 16), torch.randn(2, 10, 4 * FRAMES), torch.ones(2, FRAMES, dtype=torch.bool))
    (out.logit_visual + out.logit_audio + out.logit_fused).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_the_seed_decides_the_weights_and_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first, again, other = (build_network(tiny_config(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_head_sizes_that_do_not_divide_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="fused_dim 13 is not a multiple of temporal_heads 2"):
        tiny_config(head={"fused_dim": 13})


def test_every_preset_builds() -> None:
    for preset in ("demo", "base", "large"):
        with torch.device("meta"):
            AudioVisualNetwork(load_preset(preset))
    with pytest.raises(ConfigError):
        load_preset("huge")
