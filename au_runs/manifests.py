"""Who a checkpoint has seen: `training_manifest.json`, which lies beside the weights and travels with them.

It names everyone the weights were trained, chosen or calibrated on, so that an evaluation can refuse to test on them:

    {"schema_version": 2,
     "people": {"train": ["disfa:SN{001..009}", …], "unlabelled": […], "validation": […], "calibration": […]},
     "data": {path: content hash}, "unlabelled": {path: content hash}, "formats": […], "recipe": {…}, "commit": …,
     "date": …, "base": {…} or null,
     "labels": {"bp4d": {"AU1": {"mean": …, "rate": …, "n": …}}}}

- `people`: `person_key`s by role, as ranges (see ranges.py). Schema 1 listed every name; it is still read. Outside the
  file, a manifest always lists every name.
- `base`: the manifest of the checkpoint that training started from, so that nobody is forgotten over several trainings.
  It names only people that later manifests do not name in the same role: many trainings on the same people stay small.
- `labels`: how the training labels are distributed (`balance.label_statistics`).
- `unlabelled`: people and folders that were trained on without labels.
- `base_weights`, for adapters: the content hash of each weight file of their base (`weights_sha256`).
- `unreadable`, if there were any: images that could not be read in training and were skipped.
- `own_formats`: those of `formats` that are not built in, as `AUFormat.to_dict` gives them.

Older manifests lack the last five.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from au_llava.action_units import own_formats
from au_llava.au_runs.files import write_json
from au_llava.au_runs.names import composed, listed
from au_llava.au_runs.processes import processes
from au_llava.au_runs.provenance import code_commit, content_hashes
from au_llava.au_runs.ranges import as_ranges, names_of

TRAINING_MANIFEST = "training_manifest.json"
SCHEMA_VERSION = 2
READABLE = (1, 2)
ROLES = ("train", "unlabelled", "validation", "calibration")
LEARNED_FROM = ("train", "unlabelled")  # the roles in which weights learn people


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
        train, validation, unlabelled: `person_key`s.
        data, unlabelled_data: record folders.
        formats: names.
        recipe: options that differ from the defaults.
        base: the manifest of the checkpoint that the training starts from.
        labels: `label_statistics` of the training labels.
    """
    people = {
        "train": sorted(train),
        "unlabelled": sorted(unlabelled),
        "validation": sorted(validation),
        "calibration": [],
    }
    formats = sorted(formats)
    return {
        "schema_version": SCHEMA_VERSION,
        "people": people,
        "data": content_hashes(data),
        "unlabelled": content_hashes(unlabelled_data),
        "formats": formats,
        "own_formats": [fmt.to_dict() for fmt in own_formats() if fmt.name in formats],
        "recipe": dict(recipe),
        "commit": code_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": _unnamed(base, {role: set(named) for role, named in people.items()}),
        "labels": dict(labels or {}),
    }


def _unnamed(manifest: Mapping | None, named: Mapping[str, set[str]]) -> dict | None:
    """A manifest and its bases without the people that are already `named` in the same role."""
    if manifest is None:
        return None
    people = {role: sorted(set(manifest["people"].get(role, ())) - named[role]) for role in ROLES}
    named = {role: named[role] | set(people[role]) for role in ROLES}
    return {**manifest, "people": people, "base": _unnamed(manifest["base"], named)}


def of_parts(parts: Iterable[str]) -> dict | None:
    """The manifest of a new model that is built from these checkpoints (folders or Hub ids): everyone they have seen.

    None if none of them has a manifest, as those of other projects.
    """
    joined = None
    for part in dict.fromkeys(parts):
        joined = _before(read_training_manifest(part), joined)
    return joined


def _before(manifest: Mapping | None, earlier: Mapping | None) -> dict | None:
    """`manifest` with `earlier` as the base of its first base."""
    if manifest is None or earlier is None:
        return manifest or earlier
    return {**manifest, "base": _before(manifest["base"], earlier)}


def stored_manifest(manifest: Mapping) -> dict:
    """A manifest as its file holds it: people as ranges, in the bases too."""
    people = {role: as_ranges(names) for role, names in manifest["people"].items()}
    base = manifest["base"] and stored_manifest(manifest["base"])
    return {**manifest, "schema_version": SCHEMA_VERSION, "people": people, "base": base}


def write_training_manifest(folder: str | Path, manifest: Mapping) -> None:
    """Write the manifest into a checkpoint's folder."""
    write_json(Path(folder) / TRAINING_MANIFEST, stored_manifest(manifest))


def read_training_manifest(model: str, revision: str | None = None) -> dict | None:
    """The manifest of a checkpoint (folder or Hub id), with every name; None if the checkpoint has none.

    Args:
        revision: of a Hub id (default: its main one).

    Raises:
        ValueError: a manifest of another schema.
    """
    path = Path(model) / TRAINING_MANIFEST
    if not Path(model).is_dir():
        try:
            path = Path(hf_hub_download(model, TRAINING_MANIFEST, revision=revision))
        except (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError):
            return None
    if not path.is_file():
        return None
    return _listed(json.loads(path.read_text()), path)


def _listed(manifest: Mapping, path: Path) -> dict:
    """The manifest that the file `path` holds, with every name of its people and of its bases' people."""
    version = manifest.get("schema_version")
    if version not in READABLE:
        raise ValueError(f"{path} follows schema {version!r}, this code reads up to {SCHEMA_VERSION}: update the code.")
    people = manifest["people"]
    if version > 1:
        people = {role: names_of(entries) for role, entries in people.items()}
    base = manifest["base"] and _listed(manifest["base"], path)
    return {**manifest, "schema_version": SCHEMA_VERSION, "people": people, "base": base}


def seen_people(manifest: Mapping | None) -> dict[str, set[str]]:
    """Role -> everyone the checkpoint has seen in it, over all its trainings."""
    seen = {role: set() for role in ROLES}
    while manifest is not None:
        for role in ROLES:
            seen[role] |= set(map(composed, manifest["people"].get(role, ())))  # older ones hold them as written
        manifest = manifest["base"]
    return seen


def check_unseen(
    model: str, people: Iterable[str], roles: Iterable[str] = ROLES, advice: str = "test it on others"
) -> str:
    """Refuse to test, or to calibrate, a checkpoint on anyone it was trained on.

    Args:
        model: folder or Hub id.
        people: `person_key`s.
        roles: the `ROLES` in which the checkpoint must not have seen them.
        advice: how to mend it, for the message.

    Returns:
        "checked", or "unknown" if nothing says who the checkpoint was trained on, which is said on standard error.

    Raises:
        ValueError: the checkpoint was trained, chosen or calibrated on some of these people.
    """
    manifest = read_training_manifest(model)
    if manifest is None:
        _say_unknown(model)
        return "unknown"
    people, seen = set(people), seen_people(manifest)
    for role in roles:
        shared = sorted(seen[role] & people)
        if shared:
            raise ValueError(
                f"{model} has seen {len(shared)} of these {len(people)} people in its {role} part: {listed(shared)}. "
                f"What it reads from them says nothing about new people: {advice}."
            )
    if not seen["train"]:
        _say_unknown(model)
    return "checked" if seen["train"] else "unknown"


@cache
def _say_unknown(model: str) -> None:
    if processes().is_main_process:
        print(
            f"{model} does not say who it was trained on ({TRAINING_MANIFEST}): nobody checked that the tested people "
            "are new to it.",
            file=sys.stderr,
        )
