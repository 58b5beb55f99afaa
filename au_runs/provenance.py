"""Where numbers come from: the commit of the code, versions of packages, content hashes of data and weights."""

import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from au_llava.onnx_au_llava import SETTINGS, related_config, sha256_of

ADAPTERS = "adapter_config.json"
# Files that the numbers of a checkpoint depend on, besides weights and config.json.
BESIDE = (*SETTINGS, "generation_config.json", ADAPTERS)


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
    folder = _folder(model, "*.safetensors", revision)
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def settings_sha256(model: str) -> str:
    """The content hash of what a checkpoint's numbers depend on besides weights, calibration and mirror images.

    Of adapters, that is their own settings and those of their base.
    """
    folder = _folder(model, ["config.json", *BESIDE])
    settings = {name: sha256_of(folder / name) for name in BESIDE if (folder / name).is_file()}
    if (folder / "config.json").is_file():
        settings["config"] = related_config(folder)
    if ADAPTERS in settings:
        base = json.loads((folder / ADAPTERS).read_text(encoding="utf-8")).get("base_model_name_or_path")
        settings["base"] = base and settings_sha256(base)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _folder(model: str, patterns: str | list[str], revision: str | None = None) -> Path:
    """The folder of a checkpoint (folder or Hub id); of one on the Hub, it holds the files that match `patterns`."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download  # here: importing it takes longer than hashing a small file

    return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
