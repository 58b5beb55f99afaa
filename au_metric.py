"""The `evaluate` metric for answers: parses generated AU strings and scores them against AU values.

    metric = evaluate.load("./au_metric.py")
    metric.compute(predictions=["AU6: 1, AU12: 0"], references=[[1.0, float("nan")]], format={...})

Works offline. Parsing is `answers_au_llava.parse_answer`, scoring is `metrics_au.score`; this file joins them.
`evaluate` copies only the files that a script names itself, one per line, hence the import of `answers_au_llava`.
"""

import datasets
import evaluate
import numpy as np

from .action_units import get_format
from .answers_au_llava import parse_answer
from .metrics_au import score

_DESCRIPTION = """\
Scores facial action unit (AU) answers such as "AU1: 0, AU2: 0, AU4: 3": F1, precision, recall and accuracy of
presence, and for intensity and continuous formats ICC(3,1), Pearson correlation, mean absolute and squared error.
AUs that an answer leaves unread are left out of the scores and counted; cells without a label are left out.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of answers, strings.
    references: list of lists of numbers, one per AU in the order of the format's labels; NaN where not annotated.
    format: name of a built-in format ("bp4d", "disfa", "feafa"), an AUFormat, or its dict: name, labels, scale and
        optionally presence_threshold.

Returns:
    a flat dict. Means over the AUs for which they are defined: f1, precision, recall, accuracy and, unless the format
    codes occurrence, icc, pcc, mae, mse. Each of them per AU, such as f1_AU12, with support_AU12 (present labels),
    n_AU12 (scored answers) and unparsed_AU12. Besides: n (answers), annotated (labelled cells), unparsed_rate (share
    of the annotated cells that the answers leave unread). What is undefined is NaN.

Examples:
    >>> metric = evaluate.load("./au_metric.py")
    >>> fmt = {"name": "smile", "labels": ["AU6", "AU12"], "scale": "intensity"}
    >>> answers = ["AU6: 1, AU12: 3", "AU6: 0, AU12: 0", "AU6: 3, AU12 is unclear", "AU06=2; AU12=4"]
    >>> labels = [[1, 2], [0, 0], [3, 5], [float("nan"), 5]]
    >>> scores = metric.compute(predictions=answers, references=labels, format=fmt)
    >>> scores["f1_AU12"], scores["n_AU12"], round(scores["mae"], 3), round(scores["unparsed_rate"], 3)
    (1.0, 3, 0.333, 0.143)
"""

_CITATION = """\
@article{shrout1979intraclass,
  title={Intraclass correlations: uses in assessing rater reliability},
  author={Shrout, Patrick E. and Fleiss, Joseph L.},
  journal={Psychological Bulletin}, volume={86}, number={2}, pages={420--428}, year={1979}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AUMetric(evaluate.Metric):
    """Parse answers and score them."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("float64"))}
            ),
        )

    def _compute(self, predictions, references, format=None):
        fmt = get_format(format)
        widths = {len(row) for row in references} - {len(fmt.labels)}
        if widths:
            raise ValueError(
                f"references have rows of {sorted(widths)} numbers, but format {fmt.name!r} has {len(fmt.labels)} AUs: "
                f"{', '.join(fmt.labels)}"
            )
        answers = [parse_answer(answer, fmt).values for answer in predictions]
        values = np.array([[answer[label] for label in fmt.labels] for answer in answers], dtype=np.float64)
        scores = score(values, references, fmt)

        flat = dict(scores["mean"])
        for label, of_au in scores["per_au"].items():
            flat |= {f"{metric}_{label}": value for metric, value in of_au.items()}
        rate = scores["unparsed"] / scores["annotated"] if scores["annotated"] else float("nan")
        return flat | {"n": scores["n"], "annotated": scores["annotated"], "unparsed_rate": rate}
