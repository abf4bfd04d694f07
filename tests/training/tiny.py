"""A model, clips and runs small enough that a training step takes milliseconds. The clips' brightness follows the level of their sound."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dissonance.config import ModelConfig
from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.training.augment import AugmentConfig
from dissonance.training.batches import Sample, SampleLoader
from dissonance.training.cached_clip import CachedClip, Track
from dissonance.training.config import BatchConfig, TrainConfig
from dissonance.training.labels import REAL, Clip
from dissonance.training.sampling import Draw
from dissonance.training.trainer import Trainer

FRAMES, BINS, SIDE = 8, 10, 16
OFF = AugmentConfig.off()


def tiny_model(
    *, prompts: Mapping[str, Any] = {}, audio_prompts: Mapping[str, Any] = {}, backbones: tuple[str, str] | None = None, max_lag: int = 3
) -> ModelConfig:
    """One layer each. `backbones` are the picture's and the sound's."""
    sizes = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24}
    of_picture, of_sound = backbones or (None, None)
    document = {
        "preset": "tiny",
        "frames": FRAMES,
        "hop": FRAMES,
        "visual": {**sizes, "image_size": SIDE, "patch_size": 8, "backbone": of_picture, "prompts": dict(prompts)},
        "audio": {**sizes, "mel_bins": BINS, "max_positions": 20, "backbone": of_sound, "prompts": dict(audio_prompts)},
        "head": {"dim": 16, "fused_dim": 16, "temporal_heads": 2, "temporal_intermediate_size": 24, "max_lag": max_lag},
    }
    return ModelConfig.model_validate(document)


def shaken(network: AudioVisualNetwork) -> AudioVisualNetwork:
    """With every weight random: those that start at 0 would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


def toy_clip(
    seed: int, *, frames: int = 30, tracks: Sequence[tuple[int, int]] = (), speech: bool = True, silent: Sequence[int] = (), striped: bool = False
) -> CachedClip:
    """A cached clip of `frames` frames of sound. `tracks`: first frame and length of each, the mouths of those in `silent` do not move.

    Each frame's brightness and loudness are one random level; `striped` pictures carry what marks them as fakes.
    """
    generator = np.random.default_rng(seed)
    level = generator.random(frames)
    loud = np.repeat(level, 4)[:, None]
    log_mel = -4 + 3 * loud + generator.uniform(-0.3, 0.3, (4 * frames, BINS)) + 0.5 * np.sin(np.arange(BINS))
    found = []
    for number, (first, length) in enumerate(tracks or [(0, frames)]):
        light = (40 + 160 * level[first : first + length])[:, None, None, None]
        crops = light + generator.integers(-8, 9, (length, SIDE, SIDE, 3)) + 30 * striped * (np.arange(SIDE) % 2)[:, None]
        motion = np.full(length, 0.0 if number in silent else 9.0, np.float32)
        found.append(Track(number, first, crops.astype(np.uint8), np.zeros((length, 4), np.float32), motion))
    return CachedClip(tuple(found), log_mel.astype(np.float32), np.full(frames, speech))


def named(uri: str, *, picture_fake: bool = False, sound_fake: bool = False, identity: str = "") -> Clip:
    """A label; without `identity` the person is the clip's own."""
    kind = {(False, False): REAL, (True, False): "mouth", (False, True): "voice", (True, True): "both"}[picture_fake, sound_fake]
    return Clip(uri, Path(f"{uri}.mp4"), picture_fake, sound_fake, kind, "", identity or f"person of {uri}", "", "train")


def toy_set(count: int, *, seed: int = 0) -> tuple[list[Clip], Mapping[str, CachedClip]]:
    """Labels and clips, every other one real; a fake is of its picture, its sound, or both. Those of a sound are silent in the upper bins."""
    labels, clips = [], {}
    for number in range(count):
        fake = number % 2 == 1
        label = named(f"clip{number}", picture_fake=fake and number % 6 != 3, sound_fake=fake and number % 6 != 1)
        clip = toy_clip(1000 * seed + number, striped=label.picture_fake)
        if label.sound_fake:
            clip.log_mel[:, BINS // 2 :] -= 2
        labels.append(label)
        clips[label.uri] = clip
    return labels, clips


def tiny_run(**changes: Any) -> TrainConfig:
    """Steps of four windows and two glimpses, everything on, nothing augmented."""
    document = {
        "model": tiny_model(),
        "data": {"synthetic": {}},
        "batch": {"windows": 4, "mismatches": 1, "apart_frames": 3, "glimpses": 2},
        "augment": OFF,
        "optimiser": {"warmup_steps": 3},
        "steps": 12,
        "precision": "float32",
        "device": "cpu",
        **changes,
    }
    return TrainConfig.model_validate(document)


def loader_of(
    open_clip: Callable[[str], CachedClip],
    *,
    config: TrainConfig | None = None,
    batch: BatchConfig | None = None,
    augment: AugmentConfig = OFF,
    trim: bool = False,
    kind: type[SampleLoader] = SampleLoader,
) -> SampleLoader:
    """A loader as a run of `config` makes it, or with another batch."""
    config = config or tiny_run()
    assert isinstance(config.model, ModelConfig)
    speech = config.scan.speech
    return kind(open_clip, model=config.model, speech=speech, batch=batch or config.batch, augment=augment, trim_leading_silence=trim)


class Untold:
    """A report that nobody reads."""

    def step(self, step: int, *, loss: float) -> None:
        pass

    def validated(self, step: int, figures: Mapping[str, float | None], *, best: bool) -> None:
        pass


def by_weights(network: AudioVisualNetwork) -> dict[str, float | None]:
    """A validation that depends on the weights alone, up and down as they move."""
    total = sum(float(parameter.detach().double().sum()) for parameter in network.parameters())
    return {"auc_fused": 0.5 + 0.5 * float(np.sin(100 * total))}


def trainer_of(
    config: TrainConfig,
    folder: Path,
    *,
    validation: Callable[[AudioVisualNetwork], dict[str, float | None]] = by_weights,
    clips: int = 8,
    kind: type[SampleLoader] = SampleLoader,
    data: str = "these clips",
    network: AudioVisualNetwork | None = None,
) -> Trainer:
    """A run on `clips` toy clips, from its beginning."""
    labels, cached = toy_set(clips)
    assert isinstance(config.model, ModelConfig)
    folder.mkdir(exist_ok=True)
    return Trainer(
        config,
        network or build_network(config.model, seed=config.seed),
        clips=labels,
        loader=loader_of(cached.__getitem__, config=config, kind=kind),
        validation=validation,
        folder=folder,
        data=data,
        trained_on="toys",
    )


# Validations after steps 12 and 18 and the last, checkpoints after 4, 8, ...: so two before the first validation, and some between two of them.
RUN = tiny_run(
    steps=22, fused_from=0.4, validate_every=6, checkpoint_every=4, optimiser={"warmup_steps": 3, "learning_rate": 3e-3}, loss={"tau": 0.2}
)
DRAWS = RUN.batch.windows + RUN.batch.glimpses  # a step


def loader_stopped_at(step: int) -> type[SampleLoader]:
    """Ctrl-C at the batch of that step of RUN."""

    class Stopped(SampleLoader):
        def load(self, draw: Draw) -> Sample:
            if draw.number == step * DRAWS:
                raise KeyboardInterrupt
            return super().load(draw)

    return Stopped


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Of a run, without rates."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_s"} for line in lines]


def another(**changes: Any) -> TrainConfig:
    return RUN.model_copy(update=changes)
