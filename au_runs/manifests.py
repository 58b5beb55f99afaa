"""Where a checkpoint and a number come from: commits, content hashes, and who a checkpoint has seen.

`training_manifest.json` lies beside a checkpoint's weights and travels with the folder. It names every person the
weights have been trained or chosen on, so that an evaluation can refuse to test on them:

    {"schema_version": 1,
     "people": {"train": ["disfa:SN001", …], "unlabelled": […], "validation": […], "calibration": […]},
     "data": {path: content hash}, "unlabelled": {path: content hash}, "formats": […], "recipe": {…}, "commit": …,
     "date": …, "base": {…} or null,
     "labels": {"bp4d": {"AU1": {"mean": …, "rate": …, "n": …}}}}

`base` is the manifest of the checkpoint that training started from, so nobody is forgotten over several trainings; it
names only people whom later manifests do not name in that role: many trainings on the same people stay small.
`labels` says how the training labels are distributed (`balance.label_statistics`); older manifests lack it.
`unlabelled` are people and folders that were trained on without labels; older manifests lack it.
`base_weights`, of adapters, is the content hash of each weight file of their base (`weights_sha256`).
`unreadable`, where there is one, lists images that could not be read in training and were skipped.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from au_llava.au_datasets.folds import person_key
from au_llava.au_runs.files import write_json
from au_llava.au_runs.provenance import code_commit, content_hashes

TRAINING_MANIFEST = "training_manifest.json"
SCHEMA_VERSION = 1
ROLES = ("train", "unlabelled", "validation", "calibration")


def people_of(records) -> list[str]:
    """The people of a record table (anything with columns `dataset` and `subject`), sorted `person_key`s."""
    return sorted({person_key(*pair) for pair in zip(records["dataset"][:], records["subject"][:], strict=True)})


def training_manifest(
    train: Iterable[str],
    validation: Iterable[str],
    data: Iterable[str],
    formats: Iterable[str],
    recipe: Mapping,
    base: Mapping | None = None,
    labels: Mapping | None = None,
    unlabelled: Iterable[str] = (),
    unlabelled_data: Iterable[str] = (),
) -> dict:
    """The manifest of a training that starts now.

    Args:
        train, validation, unlabelled: `person_key`s. data, unlabelled_data: record folders. formats: names. recipe:
            options that differ from the defaults. base: the manifest of the checkpoint that it starts from. labels:
            their `label_statistics`.
    """
    people = {
        "train": sorted(train),
        "unlabelled": sorted(unlabelled),
        "validation": sorted(validation),
        "calibration": [],
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "people": people,
        "data": content_hashes(data),
        "unlabelled": content_hashes(unlabelled_data),
        "formats": sorted(formats),
        "recipe": dict(recipe),
        "commit": code_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": _unnamed(base, {role: set(named) for role, named in people.items()}),
        "labels": dict(labels or {}),
    }


def _unnamed(manifest: Mapping | None, named: Mapping[str, set[str]]) -> dict | None:
    """A manifest and its bases without the people that are `named` in the same role already."""
    if manifest is None:
        return None
    people = {role: sorted(set(manifest["people"].get(role, ())) - named[role]) for role in ROLES}
    named = {role: named[role] | set(people[role]) for role in ROLES}
    return {**manifest, "people": people, "base": _unnamed(manifest["base"], named)}


def write_training_manifest(folder: str | Path, manifest: Mapping) -> None:
    """Write the manifest into a checkpoint's folder, whole or not at all."""
    write_json(Path(folder) / TRAINING_MANIFEST, manifest)


def read_training_manifest(model: str) -> dict | None:
    """The manifest of a checkpoint, a folder or a Hub id; None where it has none.

    Raises:
        ValueError: a manifest of another schema.
    """
    path = Path(model) / TRAINING_MANIFEST
    if not Path(model).is_dir():
        try:
            path = Path(hf_hub_download(model, TRAINING_MANIFEST))
        except (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError):
            return None
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text())
    if manifest.get("schema_version") != SCHEMA_VERSION:
        arrived = manifest.get("schema_version")
        raise ValueError(f"{path} follows schema {arrived!r}, this code reads {SCHEMA_VERSION}: update the code.")
    return manifest


def seen_people(manifest: Mapping | None) -> dict[str, set[str]]:
    """Role -> everyone a checkpoint has met in it, over all its trainings."""
    seen = {role: set() for role in ROLES}
    while manifest is not None:
        for role in ROLES:
            seen[role] |= set(manifest["people"].get(role, ()))
        manifest = manifest["base"]
    return seen


def check_unseen(model: str, tested: Iterable[str], roles: Iterable[str] = ROLES) -> str:
    """Refuse to test (or calibrate) a checkpoint on people it has met.

    Args:
        model: folder or Hub id. tested: `person_key`s. roles: in which of `ROLES` it must not have met them.

    Returns:
        "checked", or "unknown" where nothing says who the checkpoint was trained on.

    Raises:
        ValueError: the checkpoint was trained, chosen or calibrated on somebody who is tested.
    """
    manifest = read_training_manifest(model)
    if manifest is None:
        return "unknown"
    tested, seen = set(tested), seen_people(manifest)
    for role in roles:
        shared = sorted(seen[role] & tested)
        if shared:
            shown = ", ".join(shared[:5]) + (" …" if len(shared) > 5 else "")
            raise ValueError(
                f"{model} has met {len(shared)} of the {len(tested)} tested people in its {role} part: {shown}. "
                "Its scores on them would say nothing about new people: test it on others."
            )
    return "checked" if seen["train"] else "unknown"
