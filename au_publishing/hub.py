"""Publishing on the Hugging Face Hub: which files of a checkpoint go there, what its card must say, the upload.

A list names what is published and everything else stays behind, since the folder of a training also holds optimizer
states, pickles and the base that it started from. Nothing is written into the folder, and nothing is asked of the
network before `check_target` and `upload`. Used by train_sft.py --push_to_hub, tools/release.py and, for the upload,
tools/release_metric.py.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    eval_result_entries_to_yaml,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from au_llava.au_runs.manifests import TRAINING_MANIFEST, read_training_manifest, seen_people

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# What a checkpoint consists of beside its weights and code. {file: is there a checkpoint without it?}
CHECKPOINT_FILES = {
    "config.json": False,
    "decision.json": True,
    "decision_template.jinja": True,
    "generation_config.json": True,
    "processor_config.json": False,
    "chat_template.jinja": True,
    "tokenizer_config.json": False,
    "handler.py": True,  # of Inference Endpoints
    "LICENSE": True,
    "NOTICE": True,
    TRAINING_MANIFEST: True,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
STATE = "state of the training"
LEFT_OUT = {  # why: patterns of names
    STATE: (
        *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin", "trainer_state.json"),
        "trained_weights.safetensors",
        *("checkpoint-*", "base", "logs", "runs", "events.out.*"),
    ),
    "data": ("*.parquet", "*.arrow", "*.csv", "*.jsonl", "*.png", "*.jpg", "*.mp4", "*.avi", "data", "assets"),
}
RECIPE = "recipe.yaml"
RESULTS_FOLDER = ".eval_results"
METRICS = {"f1": "F1", "roc_auc": "ROC AUC", "ece": "ECE", "icc": "ICC(3,1)", "pcc": "PCC", "mae": "MAE"}

# Dataset of a training manifest -> its name and who hands it out on which terms (docs/data.md). None: no terms.
DATASETS = {
    "rendered": None,
    "fairface": None,  # CC BY 4.0: its pictures are not in the weights; the card credits it
    "bp4d": ("BP4D", "Binghamton University, under a signed agreement"),
    "bp4d-plus": ("BP4D+", "Binghamton University, under a signed agreement"),
    "disfa": ("DISFA", "its authors, under a signed agreement"),
    "feafa": ("FEAFA", "its authors, on request"),
    "gft": ("GFT", "its authors: labels under CC BY 4.0, videos by agreement"),
    "aff-wild2": ("Aff-Wild2", "its authors, signed by academic staff"),
    "ck-plus": ("CK+", "the Affect Analysis Group of the University of Pittsburgh, under a signed agreement"),
    "emotionet": ("EmotioNet", "Ohio State University"),
}


@dataclass(frozen=True)
class Release:
    """What a repository gets.

    Attributes:
        files: name in the repository -> the file on disk, or its content.
        left_out: why -> names of what stays in the folder.
        notes: sentences that whoever publishes it has to know; they are in the card too.
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
    """Collect a release of the checkpoint in `folder`, without a network call.

    Args:
        repo_id: "USER/NAME", for the card's example.
        evaluations: what eval_au.py wrote: folders, or their results.json.
        benchmark: Hub id of the dataset that they tested on; only with it there are files in `.eval_results`, whose
            format knows benchmarks on the Hub alone.

    Raises:
        ValueError: the folder is not a whole checkpoint, or holds pickled weights or LoRA adapters; an evaluation that
            eval_au.py did not write; a benchmark without evaluations.
    """
    folder = Path(folder)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    check_checkpoint(folder, names)
    files: dict[str, Path | bytes] = {name: folder / name for name in (*CHECKPOINT_FILES, *TOKENIZER_FILES)}
    files |= {name: folder / name for name in (*weight_files(folder), *code_files(folder))}
    files = {name: path for name, path in files.items() if path.is_file()}
    manifest = read_training_manifest(str(folder))
    notes = licence_notes(manifest)
    results = [read_results(path) for path in evaluations]
    if benchmark and not results:
        raise ValueError(f"--benchmark {benchmark} says what was tested on: name the evaluation too (--evaluation).")
    files["README.md"] = card(folder, names, repo_id, manifest, results, notes).encode()
    if manifest is not None:
        public = without_local_paths(manifest)
        files[TRAINING_MANIFEST] = (json.dumps(public, indent=1) + "\n").encode()
        files[RECIPE] = yaml.safe_dump(recipe(public), sort_keys=False).encode()
    for number, result in enumerate(results if benchmark else (), start=1):
        entries = eval_result_entries_to_yaml(result_entries(result, benchmark))
        name = f"{RESULTS_FOLDER}/{benchmark.rpartition('/')[2]}-{number}.yaml"
        files[name] = yaml.safe_dump(entries, sort_keys=False).encode()
    return Release(files, left_out([name for name in names if name not in files]), notes)


def check_checkpoint(folder: Path, names: Sequence[str]) -> None:
    """Raise ValueError, with what is wrong and what to do, unless `folder` holds a whole checkpoint."""
    if "adapter_config.json" in names:
        raise ValueError(
            f"{folder} holds LoRA adapters, which nobody can load without their base: merge them into a checkpoint "
            "first (tools/merge_adapter.py)."
        )
    pickled = [name for name in names if matches(name, PICKLES) and not matches(name, LEFT_OUT[STATE])]
    if pickled:
        raise ValueError(
            f"{folder} holds {', '.join(pickled)}: pickles run code when they are loaded and are never published. "
            "Save the weights as safetensors and move these files away."
        )
    lacking = [name for name, optional in CHECKPOINT_FILES.items() if not optional and name not in names]
    if not {WEIGHTS, WEIGHTS_INDEX} & set(names):
        lacking.insert(0, f"weights ({WEIGHTS})")
    if not set(TOKENIZER_FILES[:3]) & set(names):
        lacking.append("a tokenizer")
    if lacking:
        raise ValueError(
            f"{folder} lacks {', '.join(lacking)}: name a folder that train_sft.py or save_pretrained wrote, "
            "the processor included."
        )


def weight_files(folder: Path) -> list[str]:
    """Names of the weights: one file, or an index and its shards. Raises ValueError where one is missing or cut off."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        shards = json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()
        names = sorted(set(shards))
    for name in names:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} is missing or not a whole safetensors file: {error}") from None
    return names if names == [WEIGHTS] else [WEIGHTS_INDEX, *names]


def code_files(folder: Path) -> list[str]:
    """Names of the Python files that the configuration and the processor load, and of what these import."""
    settings = [json.loads((folder / name).read_text()) for name in ("config.json", "processor_config.json")]
    named = {reference.partition(".")[0] for each in settings for reference in references(each)}
    files = {folder / f"{module}.py" for module in named}
    try:
        files |= {Path(path) for file in files for path in get_relative_import_files(file)}
    except OSError as error:
        raise ValueError(f"{folder} lacks {Path(error.filename).name}, which its checkpoint loads.") from None
    return sorted(path.name for path in files)


def references(settings) -> Iterator[str]:
    """Every "file.Class" below the keys by which Transformers finds code: auto_map, and `impl` of a custom pipeline."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key == "auto_map":
                yield from value.values()
            elif key == "impl":
                yield value
            else:
                yield from references(value)


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def left_out(names: Iterable[str]) -> dict[str, list[str]]:
    """Why -> names of what stays."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        why = next((why for why, patterns in LEFT_OUT.items() if matches(name, patterns)), "not part of a checkpoint")
        reasons.setdefault(why, []).append(name)
    return reasons


def local_paths(value) -> set[str]:
    """Every absolute path in a manifest. Where something lay on one machine is nobody's business."""
    if isinstance(value, Mapping):
        return local_paths([*value, *value.values()])
    if isinstance(value, list):
        return {path for each in value for path in local_paths(each)}
    return {value} if isinstance(value, str) and value.startswith(("/", "~")) else set()


def without_local_paths(value):
    """A manifest with absolute paths cut down to their last part."""
    if isinstance(value, Mapping):
        return {without_local_paths(key): without_local_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_local_paths(each) for each in value]
    return Path(value).name if local_paths(value) else value


def recipe(manifest: Mapping) -> dict:
    """The training's options as train_sft.py --config reads them; where to write to is left to the reader."""
    options = dict(manifest["recipe"])
    mixture = options.pop("mixture", [])
    told = {table["path"] for table in mixture}
    return {"data": [path for path in manifest["data"] if path not in told] + mixture, **options}


def licence_notes(manifest: Mapping | None) -> list[str]:
    """What has to be settled before the weights are passed on, by the datasets that they have seen."""
    if manifest is None:
        return ["Nothing records which data these weights were trained on; its terms apply to them."]
    people = {person for part in seen_people(manifest).values() for person in part}
    notes = []
    for dataset in sorted({person.partition(":")[0] for person in people}):
        if dataset not in DATASETS:
            notes.append(f"Trained on {dataset}, whose terms are not known here; they apply to these weights.")
        elif DATASETS[dataset]:
            name, terms = DATASETS[dataset]
            notes.append(
                f"Trained on {name}, which is handed out by {terms}. Whether weights made from it may be passed on, "
                "and to whom, is for that agreement to say."
            )
    if bases := base_models(manifest):
        notes.append(f"Started from {' and '.join(bases)}; their licences apply too.")
    return notes


def base_models(manifest: Mapping | None) -> list[str]:
    """Hub ids of the encoder and the language model that the first of the trainings started from, where it says so."""
    ids: list[str] = []
    while manifest is not None:
        parts = [manifest["recipe"].get(part, "") for part in ("vision", "text")]
        ids = [part for part in parts if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", part) and not Path(part).exists()] or ids
        manifest = manifest["base"]
    return ids


def read_results(path: str | Path) -> dict:
    """The results.json that eval_au.py wrote, given by its folder or itself. Raises ValueError for anything else."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as results of eval_au.py: {error}") from None
    if not isinstance(results, dict) or not {"formats", "provenance"} <= results.keys():
        raise ValueError(f"{path} holds no scores of one checkpoint: name what `eval_au.py --model … --data …` wrote.")
    return results


def scores(results: Mapping) -> Iterator[tuple[str, str, float]]:
    """(format, metric, mean over AUs) of the metrics that are published and known."""
    for name, scored in results["formats"].items():
        yield from ((name, metric, mean) for metric in METRICS if (mean := scored["mean"].get(metric)) is not None)


def tested(results: Mapping) -> str:
    """What was tested on: the names of the datasets' folders."""
    return ", ".join(Path(table).name for table in results["provenance"]["data"])


def result_entries(results: Mapping, benchmark: str) -> list[EvalResultEntry]:
    origin = results["provenance"]
    notes = f"decoder {origin['decoding']}, part {origin['part']}, mean over AUs"
    return [
        EvalResultEntry(benchmark, f"{name}_{metric}", value, date=origin["date"], notes=notes)
        for name, metric, value in scores(results)
    ]


def card(folder: Path, names, repo_id: str, manifest, results: Sequence[Mapping], notes: Sequence[str]) -> str:
    """README.md of the repository: the folder's card, with the repository's name, scores, and what `notes` say.

    A folder that is also a project has its card in model_card.md, since its README.md speaks of the project.
    """
    source = next((name for name in ("model_card.md", "README.md") if name in names), None)
    if source is None:
        raise ValueError(f"{folder} has no README.md: save_pretrained writes one.")
    card = ModelCard.load(folder / source)
    data = card.data
    data.model_name = repo_id.partition("/")[2]
    data.base_model = data.base_model or base_models(manifest) or None
    if notes and data.license is None:
        data.license, data.license_name = "other", "terms-in-this-card"
    data.eval_results = [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Facial action units",
            dataset_type=tested(each),
            dataset_name=tested(each),
            dataset_config=name,
            dataset_split=each["provenance"]["part"],
            dataset_args={"content_sha256": [*each["provenance"]["data"].values()]},
            metric_type=metric,
            metric_name=f"{METRICS[metric]}, {each['provenance']['decoding']} decoder",
            metric_value=value,
        )
        for each in results
        for name, metric, value in scores(each)
    ] or None
    card.text = card.text.replace('from_pretrained(".",', f'from_pretrained("{repo_id}",')
    for path in sorted(local_paths(manifest), key=len, reverse=True):
        card.text = card.text.replace(path, Path(path).name)
    if results:
        card.text += "\n## Evaluation\n\n" + evaluation_table(results)
    if notes:
        card.text += "\n## Terms of what it was made from\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    return card.content


def evaluation_table(results: Sequence[Mapping]) -> str:
    """Mean scores in Markdown, a row per evaluation and format."""
    head = ["data", "part", "images", "decoder", "format", *METRICS.values()]
    rows = [head, ["---"] * len(head)]
    for each in results:
        origin = each["provenance"]
        for name, scored in each["formats"].items():
            values = [scored["mean"].get(metric) for metric in METRICS]
            shown = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append([tested(each), origin["part"], str(scored["n"]), origin["decoding"], name, *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\nMeans over AUs.\n"


def check_target(repo_id: str, token: str | None = None) -> str:
    """Find out, before anything is trained or sent, whether a new model could be published there.

    Args:
        repo_id: "USER/NAME", or "NAME" of one's own.
        token: default: HF_TOKEN, or that of `hf auth login`.

    Returns:
        "USER/NAME".

    Raises:
        ValueError: no token, a token that the Hub refuses, a repository that exists, or a Hub that does not answer.
    """
    api = HfApi(token=checked_token(token))
    try:
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        if api.repo_exists(repo_id):
            raise ValueError(exists(repo_id))
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(refusal(repo_id, error)) from None
    return repo_id


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    token: str | None = None,
    private: bool = True,
    update: bool = False,
    **repository,
) -> str:
    """Make a repository and put `files` into it in one commit: all of them, or none.

    Args:
        update: whether the repository may exist. Weights in it that are not among `files` are then deleted, since old
            shards would be loaded with the new ones.
        repository: what `HfApi.create_repo` takes: `repo_type`, `space_sdk`.

    Returns:
        its address.

    Raises:
        ValueError: as `check_target`.
    """
    api = HfApi(token=checked_token(token))
    repo_type = repository.get("repo_type")
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=update, **repository)
        present = api.list_repo_files(url.repo_id, repo_type=repo_type) if update else []
        stale = [name for name in present if fnmatch(name, "model*.safetensors*") and name not in files]
        operations = [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        api.create_commit(url.repo_id, operations, commit_message=message, repo_type=repo_type)
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(refusal(repo_id, error)) from None
    return str(url)


def checked_token(token: str | None) -> str:
    token = token or get_token()
    if token is None:
        raise ValueError("No Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token that may write.")
    return token


def exists(repo_id: str) -> str:
    return f"{repo_id} exists: choose another name, or add a commit to it with tools/release.py --update."


def refusal(repo_id: str, error: Exception) -> str:
    """One sentence for an error of the Hub. It repeats nothing of the request, which carries the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    reasons = {
        401: "The Hub does not accept the token: run `hf auth login` again, or set HF_TOKEN to a valid one.",
        403: f"The token may not write to {repo_id}: use one with write access, and a name of your own.",
        409: exists(repo_id),
    }
    if status is None:
        return f"The Hub cannot be reached ({type(error).__name__}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
    return reasons.get(status, f"The Hub answered with status {status} for {repo_id}; nothing was published.")
