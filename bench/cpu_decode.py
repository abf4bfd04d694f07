"""Rung `cpu-decode`: what it costs on a CPU to turn video into windows, as ratios within this run.

1. Decode + crop of one face + windows against a bare PyAV decode of the same file, CPU time, 720p and 1080p (boxes given, so no detection).
2. Face detection at the default interval against that bare decode.
3. Peak memory of reading 10 minutes of 1080p against reading 20 seconds of it.
4. How busy a scan of 64 clips keeps the machine: CPU time over wall time times cores, between the 8th and the 56th finished file.

The clips are drawn here (`dissonance.synth`), so no network and no data set is needed; they are encoded at the rates that streaming
ladders recommend for their size (3 to 4.5 Mb/s at 720p, 6 to 7.8 at 1080p), because what a bare decode costs goes with the rate. Rounds of
the variants alternate and the median ratio counts, because a shared machine's speed drifts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import psutil

from bench._rows import Row, at_most, tell
from dissonance.bundle import open_bundle
from dissonance.config import DetectorConfig, ScanConfig
from dissonance.engine.media.clip import read_clip
from dissonance.engine.media.detect import make_detector
from dissonance.synth.clip import render_clip
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from dissonance.synth.mux import write_clip
from dissonance.synth.plan import plan_clip

ROUNDS = 5
SECONDS = 20
LONG_REPEATS = 30
CLIPS = 64


def run() -> list[Row]:
    """Measure everything; about ten minutes on two cores."""
    with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as name:
        folder = Path(name)
        rows: list[Row] = []
        cv2.setNumThreads(1)  # as in a decode worker
        for width, height, crf in ((1280, 720, 20), (1920, 1080, 19)):
            tell(f"drawing {SECONDS} s of {width}x{height}")
            clip, boxes = draw(folder, width, height, crf)
            tell(f"timing {ROUNDS} rounds of {clip.name}")
            rows += decode_ratios(clip, boxes)
        tell(f"reading {SECONDS} s and {LONG_REPEATS * SECONDS} s of 1080p")
        rows.append(memory_ratio(clip, boxes, folder))
        tell(f"scanning {CLIPS} clips")
        rows.append(utilisation(folder))
        return rows


def draw(folder: Path, width: int, height: int, crf: int) -> tuple[Path, Path]:
    """One talking face, and the boxes that were drawn."""
    config = SynthConfig(width=width, height=height, duration_s=SECONDS, two_person_share=0)
    clip = folder / f"{height}p.mp4"
    drawn = render_clip(plan_clip(1, 0, config), config)
    write_clip(clip, drawn.frames, drawn.samples, sample_rate_hz=config.sample_rate_hz, crf=crf)
    return clip, write_boxes(folder / f"{height}p.jsonl", clip, drawn.truth.boxes[0].tolist())


def write_boxes(path: Path, clip: Path, boxes: list[list[float]]) -> Path:
    """Given boxes for `--detector boxes`, one a frame."""
    names = ("x0", "y0", "x1", "y1")
    lines = [
        json.dumps({"uri": str(clip), "track": 0, "time_s": frame / 25, **dict(zip(names, box, strict=True))}) for frame, box in enumerate(boxes)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def bare_decode(clip: Path) -> int:
    """What PyAV alone costs: every frame of picture and sound, thrown away."""
    with av.open(str(clip)) as container:
        video = container.streams.video[0]
        video.thread_count = 1
        return sum(isinstance(frame, av.VideoFrame) for frame in container.decode(video, container.streams.audio[0]))


def read_windows(clip: Path, config: ScanConfig) -> int:
    """What a decode worker does with a file, but for sending it on."""
    spec = open_bundle("demo").spec
    detector = make_detector(config.detector)
    count = 0
    for part in read_clip(clip, model=spec.model, crop=spec.crop, mel=spec.mel, scan=config, detector=detector):
        count = getattr(part, "frames_decoded", count)
    return count


def cpu_s(work: Callable[[], int], frames: int) -> float:
    """CPU seconds of this process; the work must have decoded every frame."""
    started_s = time.process_time()
    decoded = work()
    elapsed_s = time.process_time() - started_s
    assert decoded == frames, f"decoded {decoded} of {frames} frames"
    return elapsed_s


def decode_ratios(clip: Path, boxes: Path) -> list[Row]:
    """Rows 1 and 2."""
    given = ScanConfig(detector=DetectorConfig(kind="boxes", boxes_file=boxes))
    haar = ScanConfig()
    frames = SECONDS * 25
    variants = {"bare": lambda: bare_decode(clip), "given": lambda: read_windows(clip, given), "haar": lambda: read_windows(clip, haar)}
    for work in variants.values():
        cpu_s(work, frames)  # warm caches and imports
    times = [{name: cpu_s(work, frames) for name, work in variants.items()} for _ in range(ROUNDS)]
    bare_ms = statistics.median(each["bare"] for each in times) / frames * 1e3
    windows = statistics.median(each["given"] / each["bare"] for each in times)
    detection = statistics.median((each["haar"] - each["given"]) / each["bare"] for each in times)
    size = f"{clip.stem} at {clip.stat().st_size * 8 / SECONDS / 1e6:.1f} Mb/s"
    return [
        at_most(
            f"{size}: decode + crop + windows / bare decode",
            windows,
            1.6,
            f"CPU time, median of {ROUNDS} paired rounds; bare {bare_ms:.2f} ms a frame",
        ),
        at_most(f"{size}: haar detection / bare decode", detection, 1.0, f"every {haar.detector.every_frames} frames, same rounds"),
    ]


def memory_ratio(clip: Path, boxes: Path, folder: Path) -> Row:
    """Row 3: peak resident memory of a fresh process that reads each file."""
    long = repeat(clip, folder / "long.mp4", LONG_REPEATS)
    once = [json.loads(line) for line in boxes.read_text().splitlines()]
    repeated = [[box[name] for name in ("x0", "y0", "x1", "y1")] for _ in range(LONG_REPEATS) for box in once]
    long_boxes = write_boxes(folder / "long.jsonl", long, repeated)
    short_mib, long_mib = peak_mib(clip, boxes), peak_mib(long, long_boxes)
    return at_most(
        "1080p: peak memory of 10 minutes / of 20 seconds", long_mib / short_mib, 1.2, f"{long_mib:.0f} MiB / {short_mib:.0f} MiB, given boxes"
    )


def repeat(clip: Path, out: Path, times: int) -> Path:
    """The same packets again and again, with later timestamps: a long video without encoding one."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for turn in range(times):
            source.seek(0)
            for packet in source.demux():
                if packet.dts is None or packet.pts is None or packet.time_base is None:
                    continue
                shift = int(Fraction(turn * SECONDS) / packet.time_base)
                if turn and packet.pts < 0:
                    continue  # codec priming belongs to the first turn alone
                packet.dts += shift
                packet.pts += shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out


def peak_mib(clip: Path, boxes: Path) -> float:
    """Peak resident memory, in MiB, of a process that does nothing but `read_windows`. Not ru_maxrss, which a child inherits from us."""
    command = [sys.executable, "-c", _ONE_READ, str(clip), str(boxes), str(Path(__file__).parents[1])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def utilisation(folder: Path) -> Row:
    """Row 4: a real scan, watched from outside."""
    clips = folder / "clips"
    for _ in generate(clips, count=CLIPS, seed=3, config=SynthConfig(width=640, height=480)):
        pass
    cores = len(os.sched_getaffinity(0))
    command = [sys.executable, "-c", _WATCHED_SCAN, str(clips), str(folder / "out")]
    marks: dict[str, tuple[float, float]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        scan = psutil.Process(process.pid)
        for line in process.stdout:
            marks[line.strip()] = (time.monotonic(), tree_cpu_s(scan))
    (start_s, start_cpu_s), (end_s, end_cpu_s) = marks[str(CLIPS // 8)], marks[str(CLIPS - CLIPS // 8)]
    busy = (end_cpu_s - start_cpu_s) / ((end_s - start_s) * cores)
    how = f"{cores} cores, files {CLIPS // 8} to {CLIPS - CLIPS // 8}, {(CLIPS - CLIPS // 4) / (end_s - start_s):.1f} files/s of 640x480, 4 s each"
    return {**at_most(f"scan of {CLIPS} clips: CPU seconds / (wall x cores)", busy, 0.85, how), "limit": ">= 0.85", "holds": busy >= 0.85}


def tree_cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far. Workers live as long as the scan, so none is missed."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        times = each.cpu_times()
        total += times.user + times.system
    return total


_ONE_READ = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from bench.cpu_decode import DetectorConfig, ScanConfig, read_windows
read_windows(Path(sys.argv[1]), ScanConfig(detector=DetectorConfig(kind="boxes", boxes_file=Path(sys.argv[2]))))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

_WATCHED_SCAN = """
import sys
from pathlib import Path
from dissonance.bundle import open_bundle
from dissonance.config import ScanConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.scan.pipeline import Scan

class Watch:
    done = 0
    def started(self, *, total, done): pass
    def merging(self): pass
    def finished_file(self, row):
        assert row["status"] == "scored", row
        self.done += 1
        print(self.done, flush=True)

bundle = open_bundle("demo")
Scan([sys.argv[1]], out=Path(sys.argv[2]), bundle=bundle, runtime=open_runtime(bundle), config=ScanConfig(), resume=False, progress=Watch()).run()
"""


if __name__ == "__main__":
    for result in run():
        print(json.dumps(result))
