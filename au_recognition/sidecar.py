"""Where a table comes from: the sidecar beside it, and what a journal must agree with to be continued."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from au_llava.au_faces import gaze
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT
from au_llava.au_recognition.runner import BAND, Plan
from au_llava.au_runs.formats import as_stored
from au_llava.au_runs.provenance import code_commit, settings_sha256, versions_of, weights_sha256
from au_llava.onnx_au_llava import sha256_of

PACKAGES = ("au-llava", "torch", "transformers", "pillow", "numpy", "onnxruntime", "av")


def checkpoint_identity(name: str, settings) -> dict:
    """Which checkpoint this is: content hashes of weights and settings, and what else its numbers depend on.

    Args:
        name: folder or Hub id.
        settings: has `calibration` and `mirror_images`: an engine, or the model's configuration.
    """
    return {
        "name": name,
        "weights_sha256": weights_sha256(name),
        "settings_sha256": settings_sha256(name),
        "calibration": settings.calibration,
        "mirror_images": settings.mirror_images,
    }


def plan_identity(plan: Plan, checkpoint: Mapping, detector: Mapping) -> dict:
    """Everything that the numbers depend on."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in plan.files()]
    return {
        "checkpoint": checkpoint,
        "decoding": plan.decoding,
        "formats": [as_stored(fmt) for fmt in plan.formats],
        "batch_size": plan.batch_size,
        "detector": detector,
        "files": hashlib.sha256(json.dumps(stats).encode()).hexdigest(),
        "every": plan.every,
        "fps": plan.fps,
        "distributions": plan.distributions,
        "max_yaw": plan.max_yaw,
        "gaze_sha256": sha256_of(gaze.MODEL) if plan.gaze else None,
    }


def sidecar(
    identity: Mapping, neutral: str | None, counts: Mapping, problems: Mapping, left_out: Mapping, engine
) -> dict:
    """The content of the sidecar.

    Args:
        identity: of the run, see `plan_identity`.
        neutral: the option.
        counts: of files, faces, frames without a face and faces turned away.
        problems: file -> what is wrong with it.
        engine: that has read, or has read last: engines may take turns, since their numbers are equal to 1e-5.
        left_out: what the folders hold besides pictures and videos, counted by suffix.
    """
    return {
        "schema_version": 1,
        "command": sys.argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **identity,
        "neutral": neutral,
        "crop": {"eye_distance": EYE_DISTANCE, "eye_height": EYE_HEIGHT},
        "band": {"quantiles": BAND},
        "counts": dict(counts),
        "problems": dict(problems),
        "code_commit": code_commit(),
        "engine": engine.name,
        "device": engine.device,
        "python": platform.python_version(),
        "versions": versions_of(PACKAGES),
        "left_out": dict(left_out),
    }
