"""What a training learns from and is scored on: training rows, validation records and unlabelled faces, kept apart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import datasets
import numpy as np

from au_llava.au_datasets.balance import label_statistics, row_weights
from au_llava.au_datasets.folds import people_of, person_key
from au_llava.au_datasets.mixing import TrainingData, check_people, training_rows, unlabelled_rows, validating
from au_llava.au_datasets.records import group_by_image, record_features
from au_llava.au_runs.manifests import training_manifest
from au_llava.au_training.options import AUArguments, AUTrainingConfig


@dataclass(frozen=True)
class LearningData:
    """The data of one training; nobody in it is both trained on and tested.

    Attributes:
        train: rows of `training_rows`.
        unlabelled: rows of `unlabelled_rows`, or None.
        validation_rows: rows of `training_rows` for the loss on the validation part, or None without evaluation.
        validation: records of the validation part to score, or None without evaluation.
        tables, faces: the folders of `data` and of `unlabelled`.
        labels: `label_statistics` of the training rows.
    """

    train: datasets.Dataset
    unlabelled: datasets.Dataset | None
    validation_rows: datasets.Dataset | None
    validation: datasets.Dataset | None
    tables: Sequence[TrainingData]
    faces: Sequence[TrainingData]
    labels: Mapping

    def oversampling(self, rate: float) -> np.ndarray | None:
        """`row_weights` that show AUs below this rate more often; None for a rate of 0."""
        if not rate:
            return None
        people = list(map(person_key, self.train["dataset"][:], self.train["subject"][:]))
        return row_weights(self.train["formats"][:], self.train["values"][:], people, self.labels, rate)

    def mixture(self) -> list[dict]:
        """The folders of `data` that have options of their own, as a recipe writes them."""
        tables = map(asdict, self.tables)
        return [table for table in tables if table != asdict(TrainingData(table["path"]))]

    def manifest(self, recipe: Mapping, base: Mapping | None) -> dict:
        """The training manifest. `recipe`: the options that matter; `base`: the manifest of the starting point."""
        return training_manifest(
            train=people_of(self.train),
            validation=[] if self.validation is None else people_of(self.validation),
            data=_paths(self.tables),
            formats=self.labels,
            recipe=recipe,
            base=base,
            labels=self.labels,
            unlabelled=[] if self.unlabelled is None else people_of(self.unlabelled),
            unlabelled_data=_paths(self.faces),
        )


def read_data(arguments: AUArguments, training_args: AUTrainingConfig) -> LearningData:
    """Read the data that the options name.

    Raises:
        ValueError: a folder without records of a part, without labels, or with people of two parts.
        FileNotFoundError: a folder that does not exist.
    """
    part, formats, seed = arguments.train_part, arguments.formats, training_args.seed
    tables = [TrainingData.read(entry) for entry in arguments.data]
    train = training_rows(tables, part, formats, seed)
    validation = validation_rows = None
    if training_args.eval_strategy != "no":
        validation, validation_rows = _read_validation(tables, arguments)
    faces = [TrainingData.read(entry) for entry in arguments.unlabelled]
    unlabelled = unlabelled_rows(faces, part, formats, seed) if faces else None
    used = [part] if validation is None else [part, arguments.validation_part]
    tested = [] if "test" in used else [*tables, *faces]
    check_people(train, validation, tested)
    if unlabelled is not None:
        check_people(unlabelled, validation, tested, side="unlabelled")
    if validation is not None:
        validation = _first_images(validation, arguments.validation_images)
    labels = label_statistics(*_columns(train))
    if not any(labels.values()):
        raise ValueError(
            f"No image of {', '.join(_paths(tables))} has a label: data needs labels, `unlabelled` takes the others."
        )
    return LearningData(train, unlabelled, validation_rows, validation, tables, faces, labels)


def _read_validation(tables, arguments: AUArguments) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(records, rows) of the validation part as annotated: each image once, every frame, no derived labels."""
    part, formats = arguments.validation_part, arguments.formats
    annotated = {
        (table.path, *(table.formats or ())): replace(table, weight=1, convert_to=(), frames=1)
        for table in validating(tables, part, formats)
    }.values()
    rows = training_rows(list(annotated), part, formats)
    columns = list(record_features({}))
    records = [table.load(part, formats).select_columns(columns) for table in annotated]
    return datasets.concatenate_datasets(records), rows.select(range(min(arguments.validation_images, len(rows))))


def _first_images(records: datasets.Dataset, count: int) -> datasets.Dataset:
    """The records of the first `count` images."""
    return records.select(sorted(row for image in group_by_image(records)[:count] for row in image.values()))


def _columns(train: datasets.Dataset) -> list[list]:
    """[format names, values] of every label list in training rows."""
    return [[item for row in train[name][:] for item in row] for name in ("formats", "values")]


def _paths(tables: Sequence[TrainingData]) -> list[str]:
    return list(dict.fromkeys(table.path for table in tables))
