"""The `evaluate` metric: scores answers, or values already read from them, against AU labels.

    metric = evaluate.load("./au_metric.py", "bp4d")
    metric.compute(predictions=["AU1: 0, AU2: 1, …"], references=[[0, 1, …]])

Works offline. `answers_au_llava.parse_answer` parses, `metrics_au.score` scores; this file joins them, and
`tools/release_metric.py` makes a Space of it. `evaluate` copies only the files that a script imports itself, one per
line, hence the import of `answers_au_llava`.
"""

import datasets
import evaluate
import numpy as np

from .action_units import get_format
from .answers_au_llava import parse_answer
from .metrics_au import score

DESCRIPTION = """\
Scores facial action units (AUs) read from faces, given as answers such as "AU1: 0, AU2: 0, AU4: 3" or as numbers: F1,
precision, recall, accuracy, balanced accuracy and MCC of presence; for intensity and continuous formats also ICC,
Pearson correlation, mean absolute and squared error. AUs without a label are left out, unread ones are counted.
"""

USAGE = """
Args:
    predictions: all of one kind.
        Answers: strings. An AU whose value the answer does not state clearly is unread.
        Values: lists of numbers, one per AU in the order of the format's labels, NaN where unread. 0 or 1 if the
        format codes occurrence, else any finite number, such as the mean of a distribution.
    references: list of lists of numbers, one per AU in the order of the format's labels; NaN where not annotated.
    format: name of a built-in format, such as "bp4d", "disfa" or "feafa", an AUFormat, or its dict: name, labels,
        scale ("occurrence", "intensity" or "continuous") and optionally presence_threshold, from which on labels and
        values count as present: by default 1, 2 and 0.30 on the three scales.
    unparsed: what to do with a labeled AU that is unread. It is counted either way.
        "left_out" (default): it is not scored. That flatters a system that says nothing on hard images, so quote
        unparsed_rate beside the scores.
        "absent": it is scored as a prediction of 0.

    `format` and `unparsed` can also be set for all computations when the metric is loaded:
    evaluate.load(…, format=fmt, unparsed="absent"). `evaluate.combine` needs that unless all its modules take them. The
    name of a built-in format may be the config_name: evaluate.load(…, "disfa").

Returns:
    a dict of numbers, and "undefined". An undefined score is NaN, never 0.
    Means over the AUs for which they are defined:
        f1, precision, recall, accuracy, balanced_accuracy, mcc: of presence.
        f1_skew_normalised: F1 with the negatives weighted to weigh as much as the positives.
    and, unless the format codes occurrence:
        icc, icc_1_1: ICC(3,1), consistency, and ICC(1,1), absolute agreement, of predictions with labels.
        pcc: Pearson correlation.
        mae, mse, mae_nonzero: mean absolute error, mean squared error, mean absolute error over labels above 0.
    Each of them per AU, such as f1_AU12, and besides:
        support_AU12: present labels among the scored ones.
        n_AU12: scored images.
        unparsed_AU12: labeled images where it is unread.
    Of the whole:
        n: images.
        annotated: labeled (image, AU) cells.
        unparsed_rate: share of them that is unread.
        undefined: which scores of AUs are NaN, and why, such as {"recall_AU6": "no positive label"}.

Examples:
    >>> metric = evaluate.load("./au_metric.py")
    >>> smile = {"name": "smile", "labels": ["AU6", "AU12"], "scale": "intensity"}
    >>> answers = ["AU6: 1, AU12: 3", "AU6: 0, AU12: 0", "AU6: 3, AU12 is unclear", "AU06=2; AU12=4"]
    >>> labels = [[1, 2], [0, 0], [3, 5], [float("nan"), 5]]
    >>> scores = metric.compute(predictions=answers, references=labels, format=smile)
    >>> scores["recall"], scores["recall_AU12"], scores["n_AU12"], round(scores["unparsed_rate"], 3)
    (1.0, 1.0, 3, 0.143)
    >>> scores = metric.compute(predictions=answers, references=labels, format=smile, unparsed="absent")
    >>> round(scores["recall_AU12"], 3), scores["n_AU12"], scores["unparsed_AU12"]
    (0.667, 4, 1)
    >>> values = [[0.8, 2.5], [0.1, 0.2], [3.2, float("nan")], [1.9, 4.4]]
    >>> scores = metric.compute(predictions=values, references=labels, format=smile)
    >>> round(scores["mae"], 3), round(scores["icc_AU12"], 3), scores["undefined"]
    (0.3, 0.97, {})
"""

CITATION = """\
@article{shrout1979intraclass,
  title={Intraclass correlations: uses in assessing rater reliability},
  author={Shrout, Patrick E. and Fleiss, Joseph L.},
  journal={Psychological Bulletin}, volume={86}, number={2}, pages={420--428}, year={1979}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, USAGE)
class AUMetric(evaluate.Metric):
    """Parse answers, or take values, and score them."""

    def __init__(self, config_name=None, format=None, unparsed="left_out", **settings):
        self._format = config_name if format is None else format
        self._unparsed = _checked_convention(unparsed)
        if self._format is not None:
            get_format(self._format)  # a wrong format fails when the metric is loaded
        super().__init__(config_name, **settings)

    def _info(self):
        labels = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=USAGE,
            features=[
                datasets.Features({"predictions": kind, "references": labels})
                for kind in (datasets.Value("string"), datasets.Sequence(datasets.Value("float64")))
            ],
        )

    def add_batch(self, *, predictions=None, references=None, **others):
        """Add a batch of predictions and references; `compute` scores all that were added."""
        if predictions is None or references is None:
            raise ValueError(f"{'predictions' if predictions is None else 'references'} are missing; both are needed")
        if len(predictions) != len(references):  # later, the error would leave a half-written batch behind
            raise ValueError(f"there are {len(predictions)} predictions but {len(references)} references")
        if len({isinstance(prediction, str) for prediction in predictions}) > 1:  # `evaluate` looks at the first only
            raise ValueError("predictions must be all answers (strings; '' for none) or all values (lists of numbers)")
        if len(predictions):
            super().add_batch(predictions=predictions, references=references, **others)

    def _compute(self, predictions, references, format=None, unparsed=None):
        fmt = get_format(self._format if format is None else format)
        unparsed = self._unparsed if unparsed is None else _checked_convention(unparsed)
        if isinstance(predictions[0], str):
            answers = [parse_answer(answer, fmt).values for answer in predictions]
            predictions = [[answer[label] for label in fmt.labels] for answer in answers]
        scores = read = score(predictions, references, fmt)
        if unparsed == "absent":
            scores = score(np.nan_to_num(np.array(predictions, dtype=np.float64)), references, fmt)

        flat, undefined = dict(scores["mean"]), {}
        for label, of_au in scores["per_au"].items():
            of_au["unparsed"] = read["per_au"][label]["unparsed"]
            undefined |= {f"{metric}_{label}": why for metric, why in of_au.pop("undefined").items()}
            flat |= {f"{metric}_{label}": value for metric, value in of_au.items()}
        rate = read["unparsed"] / read["annotated"] if read["annotated"] else float("nan")
        totals = {"n": read["n"], "annotated": read["annotated"], "unparsed_rate": rate}
        return flat | totals | {"undefined": undefined}


def _checked_convention(unparsed: str) -> str:
    if unparsed not in ("left_out", "absent"):
        raise ValueError(f"unparsed must be 'left_out' or 'absent', not {unparsed!r}")
    return unparsed
