"""Publish a trained checkpoint on the Hugging Face Hub, as a repository that `from_pretrained` loads with its code.

    python tools/release.py runs/mine --repo-id USER/NAME --dry-run        # lists the files, sends nothing
    hf auth login                                                          # once; or set HF_TOKEN
    python tools/release.py runs/mine --repo-id USER/NAME --evaluation runs/eval

The repository is private unless --public is given. docs/publishing.md explains what is published and what stays behind.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import eval_result_entries_to_yaml

from au_llava.au_publishing.card import (
    benchmark_entries,
    license_notes,
    read_results,
    recipe_options,
    release_card,
    without_local_paths,
)
from au_llava.au_publishing.files import checkpoint_files, left_out, names_in
from au_llava.au_publishing.upload import check_target, upload
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.manifests import TRAINING_MANIFEST, read_training_manifest, stored_manifest

RECIPE = "recipe.yaml"
RESULTS_FOLDER = ".eval_results"
MESSAGE = "AU-LLaVA checkpoint"


@dataclass(frozen=True)
class Release:
    """The content of a repository.

    Attributes:
        files: name in the repository -> the file on disk, or its content.
        left_out: reason -> names of files that stay in the folder.
        notes: what must be settled before publishing, in sentences; they are in the card too.
    """

    files: Mapping[str, Path | bytes]
    left_out: Mapping[str, Sequence[str]]
    notes: Sequence[str]

    def sizes(self) -> dict[str, int]:
        """Name -> bytes."""
        return {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in sorted(self.files.items())}


def gather(
    folder: str | Path, repo_id: str, evaluations: Iterable[str | Path] = (), benchmark: str | None = None
) -> Release:
    """Collect a release of the checkpoint in `folder`. It uses no network and writes nothing into the folder.

    Args:
        repo_id: "USER/NAME", for the card's example.
        evaluations: output of eval_au.py: folders, or their results.json.
        benchmark: Hub id of the dataset that they tested on. Only with it are files written to `.eval_results`, whose
            format knows only benchmarks on the Hub.

    Raises:
        ValueError: the folder is not a complete checkpoint, or holds pickled weights or LoRA adapters; an evaluation
            that eval_au.py did not write; a benchmark without evaluations.
    """
    folder = Path(folder)
    files: dict[str, Path | bytes] = dict(checkpoint_files(folder))
    manifest = read_training_manifest(str(folder))
    notes = license_notes(manifest)
    results = [read_results(path) for path in evaluations]
    if benchmark and not results:
        raise ValueError(f"--benchmark {benchmark} says what was tested on: name the evaluation too (--evaluation).")
    files["README.md"] = release_card(folder, repo_id, manifest, results, notes).encode()
    if manifest is not None:
        public = without_local_paths(manifest)
        files[TRAINING_MANIFEST] = (json.dumps(stored_manifest(public), indent=1) + "\n").encode()
        files[RECIPE] = yaml.safe_dump(recipe_options(public), sort_keys=False).encode()
    for number, result in enumerate(results if benchmark else (), start=1):
        entries = eval_result_entries_to_yaml(benchmark_entries(result, benchmark))
        name = f"{RESULTS_FOLDER}/{benchmark.rpartition('/')[2]}-{number}.yaml"
        files[name] = yaml.safe_dump(entries, sort_keys=False).encode()
    return Release(files, left_out(name for name in names_in(folder) if name not in files), notes)


def describe(release: Release) -> str:
    """The files with their sizes, the files that are left out and why, and the notes."""
    sizes = release.sizes()
    lines = [f"{size:>15,}  {name}" for name, size in sizes.items()]
    lines.append(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
    lines += [f"Left out, {reason}: {', '.join(names)}" for reason, names in release.left_out.items()]
    return "\n".join([*lines, *(f"Note: {note}" for note in release.notes)])


def check_training_target(training_args, adapters: bool) -> str | None:
    """The repository that a training will be published in; None without `push_to_hub`.

    Args:
        training_args: of Transformers. adapters: whether only LoRA adapters are trained.

    Raises:
        ValueError: adapters, which are not published, or a repository as in `check_target`.
    """
    if not training_args.push_to_hub:
        return None
    if adapters:
        raise ValueError(
            "push_to_hub publishes complete checkpoints: merge the adapters after training (tools/merge_adapter.py), "
            "then use tools/release.py."
        )
    name = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
    return check_target(name, training_args.hub_token)


def publish_training(training_args, repo_id: str) -> str:
    """Publish the output folder of a training; returns the address and the notes, one on each line."""
    release = gather(training_args.output_dir, repo_id)
    private = training_args.hub_private_repo is not False
    url = upload(repo_id, release.files, MESSAGE, token=training_args.hub_token, private=private)
    return "\n".join([url, *release.notes])


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("folder", help="the checkpoint, as train_sft.py or save_pretrained wrote it")
    parser.add_argument("--repo-id", required=True, metavar="USER/NAME", help="the repository to create")
    parser.add_argument(
        "--evaluation", nargs="+", default=[], metavar="DIR", help="results of eval_au.py for this checkpoint"
    )
    parser.add_argument(
        "--benchmark", metavar="USER/NAME", help="the tested dataset, if it is on the Hub: also write .eval_results"
    )
    parser.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that exists")
    parser.add_argument("--dry-run", action="store_true", help="list the files, send nothing")
    return parser


def main(arguments) -> None:
    if arguments.repo_id.count("/") != 1:
        raise ValueError(f"--repo-id {arguments.repo_id}: give USER/NAME.")
    release = gather(arguments.folder, arguments.repo_id, arguments.evaluation, arguments.benchmark)
    print(describe(release))
    if arguments.dry_run:
        print("Nothing was sent.")
        return
    url = upload(arguments.repo_id, release.files, MESSAGE, private=not arguments.public, update=arguments.update)
    print(f"Published: {url}")


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("release.py", lambda: main(make_parser().parse_args(words)))
