"""Documents: what they link to is there, and what they tell a reader to type exists."""

import re
from pathlib import Path

import pytest
import typer

from dissonance.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md", ROOT / "deploy" / "README.md"]


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_are_there(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path) if path else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    for name in re.findall(r"`((?:src|configs|bench|tests|engine)/[\w/.-]+)`", text):
        places = (ROOT / name, ROOT / "src/dissonance" / name)
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_in_documents_exist(document: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"(?:^|`|/)dissonance ((?!import)[a-z].*?)(?:`|$|  +#)", document.read_text(), re.MULTILINE):
        words = line.split()
        command = commands[words[0]]
        if words[0] == "bench":
            command = command.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", line):
            assert option in known, f"{line!r}: {option}"
