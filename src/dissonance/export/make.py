"""From a checkpoint, or random weights, to a bundle. Importing this needs no torch; calling it does."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dissonance.bundle import (
    ENCODERS,
    Bundle,
    BundleSpec,
    CalibrationSpec,
    CropSpec,
    MelSpec,
    ModalityCase,
    Precision,
    StaticPrecision,
    check_destination,
    graph_file,
    is_bundle,
    open_bundle,
    write_bundle,
)
from dissonance.config import ScanConfig, load_preset
from dissonance.errors import UsageError, require_extra
from dissonance.export.folds import FOLDS, Fold

if TYPE_CHECKING:
    from dissonance.export.ranges import Clips, Samples
    from dissonance.model.checkpoint import Checkpoint

_MODULES = ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")


def export_bundle(
    *,
    checkpoint: Path | None,
    random_weights: bool,
    preset: str | None,
    seed: int,
    out: Path,
    overwrite: bool,
    folds: Collection[Fold] = FOLDS,
    precisions: Collection[Precision] = (),
    quantise_on: AbstractContextManager["Clips"] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Write the bundle of a network: either the one in `checkpoint`, or `random_weights` of a `preset` drawn with `seed`.

    A `checkpoint` may be a bundle itself, by its folder or its name, which then brings its calibration along.

    The ONNX files are compared with torch before anything is written: a bundle is whole and checked, or not there. The same weights and
    library versions give the same ONNX files. `folds`: what of `folds.py` is done.
    `precisions`: in which the encoders are written beside float32, which a bundle always has. `quantise_on`: clips whose windows fix the scales of
    fp8 and int8-qdq; entered where they are needed, which is not for random weights. `progress` is told each step, in one line.
    Raises UsageError (neither or both, a preset that is not the checkpoint's, or no clips to quantise on), ConfigError, CheckpointError,
    EnvironmentMissingError (a library of the extra `export` is missing) and BundleError (`out` is taken, the graphs do not give torch's numbers, or
    the clips have no window).
    """
    if (checkpoint is not None) == random_weights:
        raise UsageError("Give either a checkpoint or --random-weights, " + ("not both." if random_weights else "and with the latter a --preset."))
    if random_weights and preset is None:
        raise UsageError("Random weights of which model? Give --preset (demo, base, large, or a .yaml file).")
    check_destination(out, overwrite=overwrite)
    require_extra("export", "Exporting a bundle", *_MODULES)
    from dissonance.export.flops import cost_of
    from dissonance.export.onnx import export_graph, graphs
    from dissonance.export.parity import measure_parity
    from dissonance.export.precision import in_precisions
    from dissonance.model.checkpoint import UNTRAINED, checkpoint_bytes
    from dissonance.model.network import count_parameters, parameter_table

    tell = progress or (lambda _: None)
    source = _source(checkpoint, preset=preset, seed=seed)
    network, config = source.network, source.network.config
    tell(f"parameters of {config.preset}:\n{parameter_table(network)}")
    files = {"weights.safetensors": checkpoint_bytes(network, trained_on=source.trained_on)}
    parity: dict[str, float] = {}
    others = sorted(set(precisions) - {"float32"})
    spec = BundleSpec(
        model=config,
        crop=CropSpec(size_px=config.visual.image_size),
        mel=MelSpec(bins=config.audio.mel_bins),
        trained=source.trained_on != UNTRAINED,
        trained_on=source.trained_on,
        training=source.training,
        folds=tuple(sorted(folds)),
        precisions=("float32", *others),
        calibration={**{case: CalibrationSpec() for case in get_args(ModalityCase)}, **(source.calibration or {})},
        parameters=count_parameters(network),
        versions={name: metadata.version(name) for name in ("dissonance", *_MODULES)},
    )
    samples = _samples(spec, quantise_on, tell=tell) if set(others) & set(get_args(StaticPrecision)) else None
    for graph in graphs(network, folds):
        tell(f"exporting {graph.name}")
        if graph.module is not graph.original:
            before, after = cost_of(graph, graph.original), cost_of(graph, graph.module)
            tell(
                f"{graph.name}: {before.flops / 1e6:.2f} million operations of one of its {graph.batch} before folding, {after.flops / 1e6:.2f} after"
            )
            tell(f"{graph.name}: {before.parameters:,} parameters and constants before folding, {after.parameters:,} after")
        files[graph.name] = export_graph(graph)
        found = measure_parity(graph, files[graph.name])
        parity |= found
        tell(f"{graph.name}: {len(files[graph.name]) / 1e6:.2f} MB, at most {max(found.values()):.1e} from torch")
        if others and graph.name in ENCODERS:
            tell(f"exporting {graph.name} in {', '.join(others)}")
            for precision, data in in_precisions(graph, others, float32=files[graph.name], samples=samples):
                name = graph_file(graph.name, precision)
                files[name] = data
                tell(f"{name}: {len(data) / 1e6:.2f} MB")
    if source.trained_on != UNTRAINED:
        for case in sorted(set(get_args(ModalityCase)) - set(source.calibration or {})):
            tell(f"case {case} was not calibrated: its p_fake is no probability, and its thresholds are 0.5")
    made = spec.model_copy(update={"parity": parity, "quantised_on": samples and samples.origin})
    return write_bundle(out, made, files, overwrite=overwrite)


def _samples(spec: BundleSpec, quantise_on: AbstractContextManager["Clips"] | None, *, tell: Callable[[str], None]) -> "Samples":
    """What fixes the scales of static activations."""
    from dissonance.export.ranges import clip_samples, noise_samples

    if not spec.trained:
        samples = noise_samples()
    elif quantise_on is None:
        raise UsageError("fp8 and int8-qdq of trained weights need clips to quantise on. Give quantise_on.")
    else:
        with quantise_on as clips:
            tell(f"reading {len(clips.files)} clips to quantise on")
            samples = clip_samples(clips, spec=spec, scan=ScanConfig())
            if clips.drawn and spec.trained_on != "synthetic":
                tell(f"warning: this network was trained on {spec.trained_on} and is quantised on synthetic clips; give real ones with --quantise-on")
    tell(f"scales of 8-bit activations are fixed on {samples.origin}")
    return samples


def _source(checkpoint: Path | None, *, preset: str | None, seed: int) -> "Checkpoint":
    from dissonance.model.checkpoint import UNTRAINED, Checkpoint, load_checkpoint
    from dissonance.model.network import build_network

    if checkpoint is None:
        assert preset is not None
        return Checkpoint(network=build_network(load_preset(preset), seed=seed).eval(), trained_on=UNTRAINED)
    loaded = _of_bundle(open_bundle(checkpoint)) if is_bundle(checkpoint) else load_checkpoint(checkpoint)
    if preset is not None and load_preset(preset) != loaded.network.config:
        raise UsageError(
            f"Checkpoint '{checkpoint}' is of preset '{loaded.network.config.preset}' and differs from --preset {preset}. "
            "Leave --preset out: a checkpoint brings its own configuration."
        )
    return loaded


def _of_bundle(bundle: Bundle) -> "Checkpoint":
    """The network in a bundle, with what only bundle.json knows of it."""
    from dissonance.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(bundle.path / "weights.safetensors")
    return replace(loaded, training=bundle.spec.training, calibration=bundle.spec.calibration)
