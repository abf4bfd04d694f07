"""The command line, with decode workers that have injected faults (tests/engine/scan/faulty_worker.py)."""

import os
from pathlib import Path

from dissonance.cli import main
from dissonance.engine.scan import workers

if __name__ == "__main__":
    workers.WORKER_MODULE = "tests.engine.scan.faulty_worker"
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    main()
