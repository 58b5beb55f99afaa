"""The model card on the Hub: scores, base models, and the terms of the data that the weights were trained on."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard

from au_llava.au_evaluation.tables import HEADLINE, METRICS, markdown_table, metric_names, number
from au_llava.au_runs.manifests import seen_people

# Dataset in a training manifest -> its name and its terms (docs/data.md); None: nothing to settle.
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


def release_card(
    folder: Path, repo_id: str, manifest: Mapping | None, results: Sequence[Mapping], notes: Sequence[str]
) -> str:
    """README.md for the Hub: the folder's own card with the name of the repository, the scores and the `notes`.

    A folder that is also a project has its card in model_card.md, because its README.md describes the project.

    Args:
        repo_id: "USER/NAME".
        manifest: the checkpoint's training manifest.
        results: as `read_results` reads them.
        notes: from `license_notes`.

    Raises:
        ValueError: the folder has no card.
    """
    source = next((name for name in ("model_card.md", "README.md") if (folder / name).is_file()), None)
    if source is None:
        raise ValueError(f"{folder} has no README.md: save_pretrained writes one.")
    card = ModelCard.load(folder / source)
    data = card.data
    data.model_name = repo_id.partition("/")[2]
    data.base_model = data.base_model or base_models(manifest) or None
    if notes and data.license is None:
        data.license, data.license_name = "other", "terms-in-this-card"
    data.eval_results = [result for of_folder in results for result in _card_results(of_folder)] or None
    card.text = card.text.replace('from_pretrained(".",', f'from_pretrained("{repo_id}",')
    for path in sorted(local_paths(manifest), key=len, reverse=True):
        card.text = card.text.replace(path, Path(path).name)
    if results:
        card.text += "\n## Evaluation\n\n" + evaluation_table(results)
    if notes:
        card.text += "\n## Terms of what it was made from\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    return card.content


def evaluation_table(results: Sequence[Mapping]) -> str:
    """Mean scores in Markdown, with a row for each evaluation and format."""
    header = ["data", "part", "images", "decoder", "format", *metric_names()]
    rows = []
    for of_folder in results:
        origin = of_folder["provenance"]
        for name, scored in of_folder["formats"].items():
            means = [number(scored["mean"].get(metric), undefined="") for metric in HEADLINE]
            rows.append([tested_data(of_folder), origin["part"], str(scored["n"]), origin["decoding"], name, *means])
    return markdown_table(header, rows, "llrll" + "r" * len(HEADLINE)) + "\n\nMeans over AUs.\n"


# ---- Scores


def read_results(path: str | Path) -> dict:
    """The results.json of eval_au.py, given itself or its folder. Raises ValueError for anything else."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as results of eval_au.py: {error}") from None
    if not isinstance(results, dict) or not {"formats", "provenance"} <= results.keys():
        raise ValueError(
            f"{path} does not hold the scores of one checkpoint: name what `eval_au.py --model … --data …` wrote."
        )
    return results


def benchmark_entries(results: Mapping, benchmark: str) -> list[EvalResultEntry]:
    """The scores as entries of `.eval_results`. `benchmark`: Hub id of the tested dataset."""
    origin = results["provenance"]
    notes = f"decoder {origin['decoding']}, part {origin['part']}, mean over AUs"
    return [
        EvalResultEntry(benchmark, f"{name}_{metric}", value, date=origin["date"], notes=notes)
        for name, metric, value in _scores(results)
    ]


def _card_results(results: Mapping) -> list[EvalResult]:
    origin = results["provenance"]
    return [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Facial action units",
            dataset_type=tested_data(results),
            dataset_name=tested_data(results),
            dataset_config=name,
            dataset_split=origin["part"],
            dataset_args={"content_sha256": [*origin["data"].values()]},
            metric_type=metric,
            metric_name=f"{METRICS[metric].name}, {origin['decoding']} decoder",
            metric_value=value,
        )
        for name, metric, value in _scores(results)
    ]


def _scores(results: Mapping) -> Iterator[tuple[str, str, float]]:
    """(format, metric, mean over AUs) of the published metrics."""
    for name, scored in results["formats"].items():
        yield from ((name, metric, mean) for metric in HEADLINE if (mean := scored["mean"].get(metric)) is not None)


def tested_data(results: Mapping) -> str:
    """The names of the folders that an evaluation tested on."""
    return ", ".join(Path(table).name for table in results["provenance"]["data"])


# ---- Origin


def base_models(manifest: Mapping | None) -> list[str]:
    """Hub ids of the encoder and the language model that the first of several trainings started from, if known."""
    ids: list[str] = []
    while manifest is not None:
        parts = [manifest["recipe"].get(part, "") for part in ("vision", "text")]
        ids = [part for part in parts if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", part) and not Path(part).exists()] or ids
        manifest = manifest["base"]
    return ids


def license_notes(manifest: Mapping | None) -> list[str]:
    """What must be settled before the weights are passed on, one sentence for each dataset and base."""
    if manifest is None:
        return ["It is not recorded which data these weights were trained on; the terms of that data apply to them."]
    people = {person for part in seen_people(manifest).values() for person in part}
    notes = []
    for dataset in sorted({person.partition(":")[0] for person in people}):
        if dataset not in DATASETS:
            notes.append(f"Trained on {dataset}, whose terms are not known here; they apply to these weights.")
        elif DATASETS[dataset]:
            name, terms = DATASETS[dataset]
            notes.append(
                f"Trained on {name}, which is distributed by {terms}. That agreement decides who may get weights made "
                "from it."
            )
    if bases := base_models(manifest):
        notes.append(f"Started from {' and '.join(bases)}; their licenses apply too.")
    return notes


def recipe_options(manifest: Mapping) -> dict:
    """The options of a training as train_sft.py --config reads them, without the output folder."""
    options = dict(manifest["recipe"])
    mixture = options.pop("mixture", [])
    mixed = {table["path"] for table in mixture}
    return {"data": [path for path in manifest["data"] if path not in mixed] + mixture, **options}


def local_paths(value) -> set[str]:
    """Every absolute path in a manifest; they are private and not published."""
    if isinstance(value, Mapping):
        return local_paths([*value, *value.values()])
    if isinstance(value, list):
        return {path for item in value for path in local_paths(item)}
    return {value} if isinstance(value, str) and value.startswith(("/", "~")) else set()


def without_local_paths(value):
    """A manifest in which absolute paths are reduced to their last part."""
    if isinstance(value, Mapping):
        return {without_local_paths(key): without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    return Path(value).name if local_paths(value) else value
