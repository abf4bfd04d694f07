"""The three tables a scan writes. Their column names are an interface: columns may be added, none is renamed."""

import pyarrow as pa

_SCORES = [
    ("p_fake", pa.float64()),
    ("p_visual", pa.float64()),
    ("p_audio", pa.float64()),
    ("match_similarity", pa.float64()),
    ("best_lag_frames", pa.int32()),
    ("speech_fraction", pa.float64()),
]

FILES = pa.schema(
    [
        ("uri", pa.string()),
        ("content_hash", pa.string()),
        ("size_bytes", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("label", pa.string()),
        *_SCORES,
        ("offscreen_voice", pa.bool_()),
        ("modalities", pa.string()),
        ("tracks", pa.int32()),
        ("windows", pa.int32()),
        ("duration_s", pa.float64()),
        ("video_codec", pa.string()),
        ("audio_codec", pa.string()),
        ("stream_choice", pa.string()),
        ("decoder", pa.string()),
        ("fallback_cause", pa.string()),
        ("frames_decoded", pa.int64()),
        ("frames_dropped", pa.int64()),
        ("decode_errors", pa.int64()),
        ("variable_frame_rate", pa.bool_()),
        ("detector", pa.string()),
        ("runtime", pa.string()),
        ("bundle_id", pa.string()),
        ("trained_on", pa.string()),
        ("elapsed_s", pa.float64()),
        ("peak_memory_mib", pa.int64()),
    ]
)

TRACKS = pa.schema(
    [
        ("uri", pa.string()),
        ("track", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("windows", pa.int32()),
        ("speaker", pa.bool_()),
        *_SCORES,
    ]
)

WINDOWS = pa.schema(
    [
        ("uri", pa.string()),
        ("track", pa.int32()),
        ("window", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("x0", pa.float64()),
        ("y0", pa.float64()),
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        *_SCORES,
    ]
)

TABLES = {"files": FILES, "tracks": TRACKS, "windows": WINDOWS}

Row = dict[str, object]
