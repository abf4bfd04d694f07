"""The whole network, built from a ModelConfig, and what it has to train."""

import torch
from torch import Tensor, nn

from dissonance.config import ModelConfig
from dissonance.model.audio import AudioEncoder
from dissonance.model.head import Head, HeadOutput
from dissonance.model.visual import VisualEncoder

# Which group a parameter counts to: the first prefix that its name has.
_GROUPS = (
    ("visual.prompts", "visual_prompts"),
    ("visual.", "visual_backbone"),
    ("audio.residual_prompts", "audio_prompts"),
    ("audio.prepended_prompts", "audio_prompts"),
    ("audio.", "audio_backbone"),
    ("head.align.", "alignment"),
    ("head.fusion.", "fusion"),
    ("head.tail.", "heads"),
)
PAPER_TRAINS = "(the paper: about 4.4 million, reported second-hand)"


class AudioVisualNetwork(nn.Module):
    """Two prompted encoders and the head. A backbone that comes from a checkpoint is frozen; one trained from scratch is not."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisualEncoder(config.visual, frames=config.frames)
        self.audio = AudioEncoder(config.audio, frames=config.frames)
        self.head = Head(config)
        frozen = {"visual_backbone": config.visual.backbone is not None, "audio_backbone": config.audio.backbone is not None}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not frozen.get(parameter_group(name), False))

    def encode_visual(self, pixels: Tensor) -> Tensor:
        """`pixels` (windows, T, 3, S, S) float32 RGB in [0, 1] -> (windows, T, Fv). The first frame of each window has index 0."""
        windows, frames = pixels.shape[:2]
        index = torch.arange(frames, device=pixels.device).repeat(windows) if self.visual.takes_frame_index else None
        features: Tensor = self.visual(pixels.flatten(0, 1), index)
        return features.reshape(windows, frames, -1)

    def forward(self, pixels: Tensor, mel: Tensor, mask: Tensor) -> HeadOutput:
        """`pixels` (windows, T, 3, S, S) float32 RGB in [0, 1], `mel` (windows, bins, 4T) float32, `mask` (windows, T) bool, True = valid."""
        output: HeadOutput = self.head(self.encode_visual(pixels), self.audio(mel, mask), mask)
        return output


def build_network(config: ModelConfig, *, seed: int) -> AudioVisualNetwork:
    """A network with random weights: the same ones for the same seed, and the caller's random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AudioVisualNetwork(config)


def parameter_group(name: str) -> str:
    """The group of a parameter, by its name in the network."""
    return next(group for prefix, group in _GROUPS if name.startswith(prefix))


def count_parameters(network: AudioVisualNetwork) -> dict[str, int]:
    """Parameters by group, then `trainable` and `total`. A group that has none is there with 0."""
    counts = dict.fromkeys((group for _, group in _GROUPS), 0)
    trainable = 0
    for name, parameter in network.named_parameters():
        counts[parameter_group(name)] += parameter.numel()
        trainable += parameter.numel() if parameter.requires_grad else 0
    return {**counts, "trainable": trainable, "total": sum(counts.values())}


def parameter_table(network: AudioVisualNetwork) -> str:
    """`count_parameters` as lines to print: group, count, trained or frozen; beside a frozen backbone what the paper is said to train."""
    counts = count_parameters(network)
    trained = {parameter_group(name) for name, parameter in network.named_parameters() if parameter.requires_grad}
    lines = []
    for group, count in counts.items():
        note = "" if group == "total" else "trained" if group in trained else "frozen" if count else "none"
        if group == "trainable":
            note = PAPER_TRAINS if counts["trainable"] < counts["total"] else ""
        lines.append(f"{group.replace('_', ' '):<16} {count:>13,}  {note}".rstrip())
    return "\n".join(lines)
