"""Synthetic talking-head clips: drawn faces whose mouths follow speech-like sound, and forgeries of picture, sound and timing. No torch."""

from dissonance.synth.clip import Clip, ClipTruth, render_clip
from dissonance.synth.config import FORGERIES, RATES, Compression, Forgery, Renderer, SynthConfig
from dissonance.synth.dataset import ClipRow, describe, generate
from dissonance.synth.mux import write_clip
from dissonance.synth.plan import ClipPlan, plan_clip

__all__ = [
    "FORGERIES",
    "RATES",
    "Clip",
    "ClipPlan",
    "ClipRow",
    "ClipTruth",
    "Compression",
    "Forgery",
    "Renderer",
    "SynthConfig",
    "describe",
    "generate",
    "plan_clip",
    "render_clip",
    "write_clip",
]
