"""What a person sees, one module a family of commands. Needs no library of theirs: an error is printable where one is missing."""

from dissonance.console.bundles import validation_table
from dissonance.console.clips import clips_table
from dissonance.console.machine import bench_table, findings_table
from dissonance.console.plans import plans_table
from dissonance.console.scan import ScanProgress, files_table, inspection, summary_lines
from dissonance.console.screen import counted, printable, stderr, stdout
from dissonance.console.training import TrainProgress, ablation_table, evaluation_table, training_lines

__all__ = [
    "ScanProgress",
    "TrainProgress",
    "ablation_table",
    "bench_table",
    "clips_table",
    "counted",
    "evaluation_table",
    "files_table",
    "findings_table",
    "inspection",
    "plans_table",
    "printable",
    "stderr",
    "stdout",
    "summary_lines",
    "training_lines",
    "validation_table",
]
