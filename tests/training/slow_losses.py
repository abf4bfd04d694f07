"""The loss, one Python loop a sum, in float64. It shares no code with `dissonance.training`."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dissonance.training.losses import Logits, LossConfig
from dissonance.training.pairs import PairedWindows, StreamWindows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass
class Case:
    """A batch in numpy: V pictures, A sounds, P pairs, C mismatches."""

    v: Floats  # (V, T, D)
    a: Floats  # (A, T, D)
    v_valid: Bools  # (V, T)
    a_valid: Bools  # (A, T)
    speech: Bools  # (A, T)
    v_origin: Ints  # (V, 3): clip, identity, start frame
    a_origin: Ints  # (A, 3)
    picture: Ints  # (P,)
    sound: Ints  # (P,)
    picture_fake: Bools  # (P,)
    sound_fake: Bools  # (P,)
    mismatched: Bools  # (P,)
    true_lag: Ints  # (P,)
    cross: Ints  # (C, 3)
    logits: Floats  # (3, P): visual, audio, fused

    def batch(self, dtype: torch.dtype = torch.float64) -> PairedWindows:
        def stream(features: Floats, valid: Bools, origin: Ints) -> StreamWindows:
            clip, identity, start_frame = torch.tensor(origin).unbind(1)
            return StreamWindows(
                features=torch.tensor(features, dtype=dtype), valid=torch.tensor(valid), clip=clip, identity=identity, start_frame=start_frame
            )

        return PairedWindows(
            pictures=stream(self.v, self.v_valid, self.v_origin),
            sounds=stream(self.a, self.a_valid, self.a_origin),
            speech=torch.tensor(self.speech),
            picture=torch.tensor(self.picture),
            sound=torch.tensor(self.sound),
            picture_fake=torch.tensor(self.picture_fake),
            sound_fake=torch.tensor(self.sound_fake),
            mismatched=torch.tensor(self.mismatched),
            true_lag=torch.tensor(self.true_lag),
            cross=torch.tensor(self.cross),
        )

    def torch_logits(self, dtype: torch.dtype = torch.float64) -> Logits:
        return Logits(*torch.tensor(self.logits, dtype=dtype))


def average(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def slow_losses(case: Case, config: LossConfig, *, tau: float, max_lag: int) -> dict[str, float]:
    """Every term before its weight, switched off or not, and the weighted total."""
    frames = case.v.shape[1]
    pairs = [(int(p), int(q)) for p, q in zip(case.picture, case.sound, strict=True)]
    real = [not case.picture_fake[n] and not case.sound_fake[n] and not case.mismatched[n] for n in range(len(pairs))]

    def similarity(p: int, i: int, q: int, j: int) -> float:
        return float(sum(float(x) * float(y) for x, y in zip(case.v[p, i], case.a[q, j], strict=True)))

    def frame_pairs(p: int, q: int, lag: int, *, spoken: bool) -> list[float]:
        """Similarities of picture frame i and sound frame i + lag, both there (and a voice heard)."""
        found = []
        for i in range(frames):
            j = i + lag
            if 0 <= j < frames and case.v_valid[p, i] and case.a_valid[q, j] and (case.speech[q, j] or not spoken):
                found.append(similarity(p, i, q, j))
        return found

    def common_frames(p: int, q: int) -> list[int]:
        return [i for i in range(frames) if case.v_valid[p, i] and case.a_valid[q, i]]

    terms: dict[str, float] = {}
    labels = [case.picture_fake, case.sound_fake, ~np.array(real)]
    for head, name in enumerate(("bce_visual", "bce_audio", "bce_fused")):
        costs = []
        for n, (p, q) in enumerate(pairs):
            if common_frames(p, q) and (name == "bce_fused" or not case.mismatched[n]):
                p_fake = 1.0 / (1.0 + math.exp(-case.logits[head, n]))
                costs.append(-math.log(p_fake) if labels[head][n] else -math.log(1.0 - p_fake))
        terms[name] = average(costs)

    terms["match_real"] = average([1.0 - s for n, (p, q) in enumerate(pairs) if real[n] for s in frame_pairs(p, q, 0, spoken=True)])
    terms["match_fake"] = average(
        [
            max(0.0, s - config.margin)
            for n, (p, q) in enumerate(pairs)
            if not (real[n] or case.mismatched[n])
            for s in frame_pairs(p, q, 0, spoken=False)
        ]
    )
    terms["match_cross"] = average([max(0.0, s - config.margin) for p, q, lag in case.cross for s in frame_pairs(p, q, lag, spoken=False)])

    def is_negative(p: int, q: int) -> bool:
        (clip_p, who_p, start_p), (clip_q, who_q, start_q) = case.v_origin[p], case.a_origin[q]
        if clip_p == -1 or clip_q == -1:
            return False
        if clip_p == clip_q and abs(start_p - start_q) <= 1:
            return False
        return config.negatives.same_speaker if who_p == who_q else config.negatives.other_speaker

    costs = []
    for n, (p, q) in enumerate(pairs):
        own = frame_pairs(p, q, 0, spoken=True)
        if not real[n] or not own:
            continue
        shifted = [frame_pairs(p, q, lag, spoken=True) for lag in config.negatives.shifts]
        sounds = [frame_pairs(p, other, 0, spoken=True) for other in range(len(case.a)) if is_negative(p, other)]
        pictures = [frame_pairs(other, q, 0, spoken=True) for other in range(len(case.v)) if is_negative(other, q)]
        for others in (sounds, pictures):
            rivals = [average(found) for found in others + shifted if found]
            if rivals:
                true = average(own)
                costs.append(-math.log(math.exp(true / tau) / (math.exp(true / tau) + sum(math.exp(rival / tau) for rival in rivals))))
    terms["contrast_windows"] = average(costs)

    costs = []
    for n, (p, q) in enumerate(pairs):
        common = common_frames(p, q)
        profile = {}
        for lag in range(-max_lag, max_lag + 1):
            # of frames that both streams have, as `match` takes them
            found = [similarity(p, i, q, i + lag) for i in common if i + lag in common]
            if found:
                profile[lag] = average(found)
        if int(case.true_lag[n]) in profile and any(case.speech[q, i] for i in common):
            total = sum(math.exp(value / tau) for value in profile.values())
            costs.append(-math.log(math.exp(profile[int(case.true_lag[n])] / tau) / total))
    terms["contrast_lag"] = average(costs)

    match = config.alpha * terms["match_real"] + config.beta * terms["match_fake"] + config.gamma * terms["match_cross"]
    match += config.delta * (config.contrast_windows * terms["contrast_windows"] + config.contrast_lag * terms["contrast_lag"])
    heads = config.bce_visual * terms["bce_visual"] + config.bce_audio * terms["bce_audio"] + config.bce_fused * terms["bce_fused"]
    terms["total"] = heads + config.lambda_match * match
    return terms


def unit_rows(generator: np.random.Generator, *shape: int) -> Floats:
    rows = generator.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_case(seed: int, *, pictures: int, sounds: int, pairs: int, frames: int, dim: int, crosses: int, max_lag: int) -> Case:
    """Anything that can be in a batch: ragged masks, windows without a frame or a voice, unknown origins, several windows of a clip and a person."""
    generator = np.random.default_rng(seed)

    def valid(windows: int) -> Bools:
        lengths = np.where(generator.random(windows) < 0.6, frames, generator.integers(0, frames + 1, windows))
        return np.arange(frames)[None, :] < lengths[:, None]

    def origin(windows: int) -> Ints:
        clip = generator.integers(-1, 4, windows)
        return np.stack([clip, clip // 2, generator.integers(0, 4, windows)], axis=1)

    lags = generator.integers(-max_lag - 1, max_lag + 2, pairs)
    return Case(
        v=unit_rows(generator, pictures, frames, dim),
        a=unit_rows(generator, sounds, frames, dim),
        v_valid=valid(pictures),
        a_valid=valid(sounds),
        speech=(generator.random((sounds, frames)) < 0.7) & (generator.random((sounds, 1)) < 0.8),
        v_origin=origin(pictures),
        a_origin=origin(sounds),
        picture=generator.integers(0, pictures, pairs),
        sound=generator.integers(0, sounds, pairs),
        picture_fake=generator.random(pairs) < 0.3,
        sound_fake=generator.random(pairs) < 0.3,
        mismatched=generator.random(pairs) < 0.15,
        true_lag=np.where(generator.random(pairs) < 0.7, lags, 1_000_000),
        cross=np.stack(
            [generator.integers(0, pictures, crosses), generator.integers(0, sounds, crosses), generator.integers(-frames, frames + 1, crosses)],
            axis=1,
        ),
        logits=3.0 * generator.standard_normal((3, pairs)),
    )
