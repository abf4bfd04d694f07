"""One clip: pictures, sound, and the truth about both."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dissonance.synth.articulation import CONTROL_RATE_HZ, Utterance, speak
from dissonance.synth.config import FRAMES_PER_SECOND, PICTURE_ARTEFACTS, SOUND_ARTEFACTS, SynthConfig
from dissonance.synth.features import MouthShape
from dissonance.synth.head import paint_head
from dissonance.synth.identity import Face, identity
from dissonance.synth.motion import Motion, move
from dissonance.synth.plan import ClipPlan
from dissonance.synth.randomness import Stream, stream
from dissonance.synth.relief import JAW_DROP
from dissonance.synth.rerender import LowerFaceRerender
from dissonance.synth.scene import HeadCompositor, Scene, add_sensor_noise, set_scene
from dissonance.synth.vocoder import HOPS_PER_S, vocode
from dissonance.synth.voice import synthesise

_MARGIN_S = 11.0  # of speech beyond both ends of a clip: more than the largest shift, so that a shift changes nothing else
_CLOSED = MouthShape(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ClipTruth:
    """What no detector had to guess. People are numbered from left to right."""

    speaker: int  # whose voice it is meant to be
    boxes: NDArray[np.float32]  # (people, frames, 4): x0, y0, x1, y1 in pixels; ear to ear, mid forehead to chin
    mouths: NDArray[np.float32]  # (people, frames, 2): middle of the lips, pixels
    openness: NDArray[np.float32]  # (people, frames): of the mouth that is drawn, 0 to 1
    sound_openness: NDArray[np.float32]  # (frames,): the articulation that is heard; equals openness[speaker] in a real clip


class Clip(NamedTuple):
    """`frames` yields uint8 RGB (height, width, 3), once; `samples` is float32 mono in [-1, 1] at the configured rate."""

    frames: Iterator[NDArray[np.uint8]]
    samples: NDArray[np.float32]
    truth: ClipTruth


def render_clip(plan: ClipPlan, config: SynthConfig) -> Clip:
    """Draw and say one clip. Frame k shows the articulation at k / 25 s; sample n is heard at n / rate s, `plan.shift_frames` late.

    All that is seen comes from one utterance and all that is heard from one, drawn alike in every clip: a timing forgery is two of them.
    """
    count = config.frames
    shift_s = plan.shift_frames / FRAMES_PER_SECOND
    duration_s = count / FRAMES_PER_SECOND
    person = identity(plan.seed, plan.identity, plan.renderer)
    start_s, end_s = -_MARGIN_S, duration_s + _MARGIN_S
    own = speak(stream(plan.seed, Stream.UTTERANCE, plan.index), person.voice, start_s=start_s, end_s=end_s)
    seen = heard = own
    if plan.donor_kind != "none":
        donor = identity(plan.seed, plan.donor, plan.renderer)
        other = speak(stream(plan.seed, Stream.DONOR_UTTERANCE, plan.index), donor.voice, start_s=start_s, end_s=end_s)
        seen, heard = (other, own) if plan.forgery == "visual_timing" else (own, other)
    samples = _say(plan, config, heard, start_s=-shift_s)

    faces: tuple[Face, ...] = (person.face,)
    if plan.companion is not None:
        companion = identity(plan.seed, plan.companion, plan.renderer).face
        faces = (companion, person.face) if plan.speaker_place else (person.face, companion)
    speaker = plan.speaker_place if plan.companion is not None else 0
    scene = set_scene(stream(plan.seed, Stream.SCENE, plan.index), faces, width=config.width, height=config.height)
    compositors, motions = [], []
    for number, (face, place) in enumerate(zip(faces, scene.places, strict=True)):
        compositors.append(HeadCompositor(paint_head(face, scene.light, place.unit_px), place, width=config.width, height=config.height))
        speaks = number == speaker
        # Heads nod with the speech that is seen: a nod that does not go with the mouth would give a timing forgery away by the picture alone.
        emphasis = seen.at_frames(seen.voiced, count) if speaks else np.zeros(count, dtype=np.float32)
        motions.append(move(stream(plan.seed, Stream.MOTION if speaks else Stream.LISTENER_MOTION, plan.index), count, emphasis))
    openness = np.zeros((len(faces), count), dtype=np.float32)
    openness[speaker] = seen.at_frames(seen.openness, count)
    sound_times = np.arange(count) / FRAMES_PER_SECOND - shift_s
    truth = ClipTruth(
        speaker=speaker,
        boxes=np.stack([_boxes(*each) for each in zip(faces, compositors, motions, openness, strict=True)]),
        mouths=np.stack([compositor.locate(motion, 0.0, face.mouth_y) for face, compositor, motion in zip(faces, compositors, motions, strict=True)]),
        openness=openness,
        sound_openness=np.interp(sound_times, heard.start_s + np.arange(len(heard.openness)) / CONTROL_RATE_HZ, heard.openness).astype(np.float32),
    )
    forger = None
    if plan.forgery in PICTURE_ARTEFACTS:
        rng = stream(plan.seed, Stream.PICTURE_FORGERY, plan.index)
        forger = LowerFaceRerender(rng, truth.mouths[speaker], scene.places[speaker].unit_px, float(np.mean(person.face.skin)))
    return Clip(_draw(plan, count, scene, compositors, motions, speaker, seen, forger), samples, truth)


def _say(plan: ClipPlan, config: SynthConfig, heard: Utterance, *, start_s: float) -> NDArray[np.float32]:
    rng = stream(plan.seed, Stream.SOUND, plan.index)
    level, noise = float(rng.uniform(-25, -17)), float(rng.uniform(-68, -48))
    sound = synthesise(
        heard,
        rng,
        start_s=start_s,
        samples=config.frames * config.sample_rate_hz // FRAMES_PER_SECOND,
        sample_rate_hz=config.sample_rate_hz,
        level_dbfs=level,
        noise_dbfs=noise,
    )
    if plan.forgery not in SOUND_ARTEFACTS:
        return sound
    times = start_s + np.arange(config.frames * HOPS_PER_S // FRAMES_PER_SECOND + 1) / HOPS_PER_S
    pitch = np.interp(times, heard.start_s + np.arange(len(heard.f0_hz)) / CONTROL_RATE_HZ, heard.f0_hz).astype(np.float32)
    return vocode(sound, pitch, stream(plan.seed, Stream.SOUND_FORGERY, plan.index), sample_rate_hz=config.sample_rate_hz)


def _draw(
    plan: ClipPlan,
    count: int,
    scene: Scene,
    compositors: list[HeadCompositor],
    motions: list[Motion],
    speaker: int,
    seen: Utterance,
    forger: LowerFaceRerender | None,
) -> Iterator[NDArray[np.uint8]]:
    sensor = stream(plan.seed, Stream.SENSOR, plan.index)
    shapes = np.stack([seen.at_frames(track, count) for track in (seen.openness, seen.width, seen.rounding)], axis=1).tolist()
    for frame in range(count):
        picture = scene.backdrop.copy()
        for number, (compositor, motion) in enumerate(zip(compositors, motions, strict=True)):
            compositor.put(picture, motion, frame, MouthShape(*shapes[frame]) if number == speaker else _CLOSED)
        picture = add_sensor_noise(sensor, picture, scene)
        if forger is not None:
            forger.put(picture, frame)
        yield picture


def _boxes(face: Face, compositor: HeadCompositor, motion: Motion, openness: NDArray[np.float32]) -> NDArray[np.float32]:
    closed, opened = (compositor.locate(motion, 0.0, face.chin_y + drop) for drop in (0.0, JAW_DROP))
    chin = closed + openness[:, None] * (opened - closed)
    sides = [compositor.locate(motion, x, y) for x, y in ((-1.0, 0.2), (1.0, 0.2), (0.0, -0.85))]
    points = np.stack([*sides, chin], axis=1)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
