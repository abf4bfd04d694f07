"""What `build` shows."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from dissonance.bundle import PlanSpec
from dissonance.console.screen import printable


def plans_table(plans: Mapping[str, PlanSpec]) -> Table:
    """A row for each plan of these folders."""
    table = Table("plan", "batch (opt)", "size", "built in", "attentions fused", "layers by type")
    for folder, spec in plans.items():
        for name, graph in spec.graphs.items():
            colour = "green" if graph.attentions_fused == graph.attentions else "yellow"
            table.add_row(
                escape(printable(f"{folder}/{name}")),
                f"{graph.profile.min}-{graph.profile.max} ({graph.profile.opt}) {graph.batch}",
                f"{graph.size_bytes / 1e6:.2f} MB",
                f"{graph.build_s:.1f} s",
                f"[{colour}]{graph.attentions_fused} of {graph.attentions}[/]",
                ", ".join(f"{count} {kind}" for kind, count in graph.types.items()),
            )
    return table
