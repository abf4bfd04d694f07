"""What a fresh install shows: the commands of `make demo`, and that the bundle that ships knows which of those clips are forged."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from sklearn.metrics import roc_auc_score

from dissonance.training.fakeavceleb import read_fakeavceleb

ROOT = Path(__file__).resolve().parents[1]


def test_make_demo_labels_forged_and_real_clips_rightly(cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    recipe = re.findall(r"^\t\$\(BIN\)/dissonance ((?:synth|scan) demo/.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made, scanned = (cli(*(part.replace("demo/", f"{tmp_path}/") for part in shlex.split(line))) for line in recipe)
    assert made.returncode == scanned.returncode == 0
    assert "trained on synthetic clips only: verdicts on real videos mean nothing" in scanned.stderr + scanned.stdout
    fake = {clip.uri: clip.fake for clip in read_fakeavceleb(tmp_path / "clips").clips}
    rows = [json.loads(line) for line in (tmp_path / "out" / "files.jsonl").read_text().splitlines()]
    assert {row["uri"] for row in rows if row["status"] == "scored"} == set(fake)
    assert roc_auc_score([fake[row["uri"]] for row in rows], [row["p_fake"] for row in rows]) == 1
    wrong = {row["uri"]: row["label"] for row in rows if row["label"] == ("likely_real" if fake[row["uri"]] else "likely_fake")}
    assert not wrong
