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
from au_llava.au_evaluation.rows import stacked
from au_llava.au_evaluation.scoring import score_with_intervals
from au_llava.metrics_au import decide


def shared_labels(asked: AUFormat, known: AUFormat) -> tuple[str, ...]:
    """The AUs of `known` that an answer in `asked` says something about."""
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
        rows: predictions made in `asked`, with references in `known`.
        labels: score only these of the shared AUs.

    Returns:
        `score_with_intervals` of the shared AUs; "asked", "known": name and presence threshold of each format.
    """
    labels = tuple(labels or shared_labels(asked, known))

    def of_shared(key: str) -> np.ndarray:
        numbers = stacked(rows, key)
        places = [[asked.labels.index(source) for source in sources(label, asked)] for label in labels]
        return np.stack([numbers[:, sides].max(axis=1) for sides in places], axis=1)

    probabilities = of_shared("probability")
    references = decide(stacked(rows, "references"), known)
    arguments = {
        "predictions": of_shared("present"),
        "references": references[:, [known.labels.index(label) for label in labels]],
        "probabilities": None if np.isnan(probabilities).all() else probabilities,
        "subjects": [person_key(row["dataset"], row["subject"]) for row in rows],
    }
    scores = score_with_intervals(arguments, AUFormat(known.name, labels, "occurrence"))
    for role, fmt in {"asked": asked, "known": known}.items():
        scores[role] = {"format": fmt.name, "presence_threshold": fmt.presence_threshold}
    return scores
