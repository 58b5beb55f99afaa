"""Cross-dataset transfer: what a checkpoint trained on one dataset says of the AUs that another dataset annotates.

Labels and answers meet in presence, each by its own format's threshold, on the AUs that both formats have: the same
label, or an unsided AU where the asked format has both of its sides (present if one of them is). A sided AU is never
read from an unsided one.
"""

from collections.abc import Sequence

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_datasets.conversion import sources
from au_llava.au_datasets.folds import person_key
from au_llava.au_evaluation.scoring import score_with_intervals


def shared_labels(asked: AUFormat, known: AUFormat) -> tuple[str, ...]:
    """The AUs of `known` that an answer in `asked` tells something about."""
    return tuple(label for label in known.labels if sources(label, asked))


def best_asked(trained: Sequence[AUFormat], known: AUFormat) -> AUFormat:
    """The trained format to ask where the labels are in `known`: itself, else the one with most shared AUs.

    Raises:
        ValueError: no trained format shares an AU with `known`.
    """
    best = max(trained, key=lambda fmt: (fmt.name == known.name, len(shared_labels(fmt, known))))
    if not shared_labels(best, known):
        raise ValueError(f"{', '.join(fmt.name for fmt in trained)} and {known.name} have no AU in common.")
    return best


def transfer_scores(
    rows: Sequence[dict], asked: AUFormat, known: AUFormat, labels: Sequence[str] | None = None
) -> dict:
    """Scores of presence on the shared AUs.

    Args:
        rows: predictions (see prediction.py) made in `asked`, with references in `known`.
        labels: score these of the shared AUs only.

    Returns:
        `score_with_intervals` of the shared AUs; "asked", "known": name and threshold of presence of each format.
    """
    labels = tuple(labels or shared_labels(asked, known))
    columns = {key: np.array([row[key] for row in rows], dtype=float) for key in ("present", "probability")}
    references = np.array([row["references"] for row in rows], dtype=float)
    references = np.where(np.isnan(references), np.nan, references >= known.presence_threshold)

    def joined(column: np.ndarray) -> np.ndarray:
        return np.stack(
            [column[:, [asked.labels.index(s) for s in sources(label, asked)]].max(1) for label in labels], 1
        )

    probabilities = joined(columns["probability"])
    arguments = {
        "predictions": joined(columns["present"]),
        "references": references[:, [known.labels.index(label) for label in labels]],
        "probabilities": None if np.isnan(probabilities).all() else probabilities,
        "subjects": [person_key(row["dataset"], row["subject"]) for row in rows],
    }
    scores = score_with_intervals(arguments, AUFormat(known.name, labels, "occurrence"))
    says = {"asked": asked, "known": known}
    return {**scores, **{k: {"format": f.name, "presence_threshold": f.presence_threshold} for k, f in says.items()}}
