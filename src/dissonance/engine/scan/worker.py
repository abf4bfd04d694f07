"""A decode worker: `python -m dissonance.engine.scan.worker FD`, started by `workers.WorkerPool`.

It reads its settings and then one task after another from the socket FD, turns each file into windows, and ends when the socket closes.
"""

import hashlib
import json
import os
import stat
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import ModelConfig, ScanConfig
from dissonance.engine.media.clip import read_clip
from dissonance.engine.media.detect import make_detector
from dissonance.engine.scan.messages import Crashed, Failed, Heartbeat, Opened, Ready, decode_task, encode
from dissonance.errors import MediaError

HEARTBEAT_S = 5.0
_HASH_BLOCK = 1 << 20


class Heart:
    """Beats at most every HEARTBEAT_S, from inside the decode loop: a hung decoder does not beat."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_s = time.monotonic()

    def beat(self) -> None:
        """Send a heartbeat if one is due."""
        now_s = time.monotonic()
        if now_s - self._last_s >= HEARTBEAT_S:
            self._connection.send_bytes(encode(Heartbeat()))
            self._last_s = now_s


def hash_file(path: Path, heart: Heart) -> Opened:
    """SHA-256 and size of a regular file. Raises MediaError unreadable for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISDIR(mode):
                raise MediaError("unreadable", "is a directory")
            if not stat.S_ISREG(mode):
                raise MediaError("refused", "is not a regular file (pipe, socket or device)")
            digest, size = hashlib.sha256(), 0
            while block := stream.read(_HASH_BLOCK):
                digest.update(block)
                size += len(block)
                heart.beat()
    except OSError as error:
        raise MediaError("unreadable", error.strerror or str(error)) from error
    return Opened(content_hash=digest.hexdigest(), size_bytes=size)


def main(descriptor: int) -> None:
    """Serve tasks until the other end closes the socket."""
    cv2.setNumThreads(1)
    connection = Connection(descriptor)
    heart = Heart(connection)
    settings = json.loads(connection.recv_bytes())
    model = ModelConfig.model_validate(settings["model"])
    crop = CropSpec.model_validate(settings["crop"])
    mel = MelSpec.model_validate(settings["mel"])
    scan = ScanConfig.model_validate(settings["scan"])
    detector = make_detector(scan.detector)
    connection.send_bytes(encode(Ready()))
    while True:
        try:
            task = decode_task(connection.recv_bytes())
        except EOFError:
            return
        path = Path(task.path)
        try:
            if "://" in task.path and not os.path.exists(task.path):
                raise MediaError("refused", "this release scans local files only; copy the file here, or mount its storage")
            connection.send_bytes(encode(hash_file(path, heart)))
            for part in read_clip(path, uri=task.uri, model=model, crop=crop, mel=mel, scan=scan, detector=detector, progress=heart.beat):
                connection.send_bytes(encode(part))
        except MediaError as error:
            connection.send_bytes(encode(Failed(reason=error.reason, detail=error.detail)))
        except ConnectionError:
            raise
        except Exception:
            connection.send_bytes(encode(Crashed(detail=traceback.format_exc(limit=-3))))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except (ConnectionError, EOFError):
        sys.exit(1)  # the scan is gone
