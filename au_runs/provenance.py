"""Where numbers come from: the commit of the code, versions of packages, content hashes of data and weights."""

import importlib.metadata
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from au_llava.onnx_au_llava import sha256_of


def code_commit() -> str | None:
    """The commit of this code, None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Package -> its version, None if it is not installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def content_hashes(tables: Iterable[str]) -> dict[str, str | None]:
    """Record folder -> the content hash in its manifest, None if it has no manifest."""
    manifests = {str(path): Path(path) / "manifest.json" for path in tables}
    return {
        path: json.loads(manifest.read_text())["content_sha256"] if manifest.is_file() else None
        for path, manifest in manifests.items()
    }


def weights_sha256(model: str, revision: str | None = None) -> dict[str, str]:
    """Weight file -> content hash, for a checkpoint (folder or Hub id); empty if it has no safetensors."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # here: importing it takes longer than hashing a small file

        folder = Path(snapshot_download(model, revision=revision, allow_patterns="*.safetensors"))
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
