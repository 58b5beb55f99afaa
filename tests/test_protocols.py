"""Protocols and transfer: one checkpoint per tested part, both aggregates, published rows, leakage refused."""

import csv
import json
import shutil

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image
from sklearn.metrics import f1_score

from au_llava.action_units import FORMATS, AUFormat, get_format
from au_llava.au_datasets.conversion import sources
from au_llava.au_datasets.folds import PROTOCOLS, get_protocol, protocol_parts, protocol_split
from au_llava.au_datasets.records import (
    finish_folder,
    load_records,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)
from au_llava.au_evaluation.command import main
from au_llava.au_evaluation.protocols import as_latex, as_markdown, missing_names, protocol_scores, published_rows
from au_llava.au_evaluation.transfer import best_asked, shared_labels, transfer_scores
from au_llava.au_runs.manifests import read_training_manifest, training_manifest, write_training_manifest

NAN = float("nan")


@pytest.fixture(scope="module")
def fake_records(tmp_path_factory):
    """A folder maker: records of made-up images and labels under the names of a real dataset's people."""

    def make(protocol, leave_out=()):
        protocol = get_protocol(protocol)
        folder = tmp_path_factory.mktemp(protocol.name) / "records"
        parts = protocol.parts or {"K": [f"PV{number:03d}" for number in range(1, 8)]}
        names = [name for part in parts.values() for name in part]
        rng = np.random.default_rng(0)
        fmt = FORMATS[protocol.format]
        records = []
        for name in names:
            for frame in range(2):
                content = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                values = rng.choice(fmt.value_numbers, len(fmt.labels)).astype(np.float32)
                values[rng.random(len(values)) < 0.1] = NAN
                key = {"dataset": protocol.dataset, "subject": name, "clip": name, "frame": frame}
                if name not in leave_out:
                    records.append(
                        {"image": content, **key, "format": fmt.name, "values": values.tolist(), "part": "train"}
                    )
        encoded = record_features({})
        start_folder(folder, {"dataset": protocol.dataset})
        rows = [encoded.encode_example(record) for record in records]
        write_shard(rows, encoded, shard_path(folder, "train", 0, 1))
        finish_folder(folder, {"dataset": protocol.dataset})
        return folder

    return make


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_runs(name, fake_records, tiny_checkpoint, tmp_path):
    protocol = get_protocol(name)
    folder = fake_records(name)
    models = [f"{part}={tiny_checkpoint}" for part in protocol.tested]
    words = ["--protocol", name, "--model", *models, "--data", str(folder), "--out", str(tmp_path)]
    main(words)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["folds"]) == list(protocol.tested)
    assert set(results["pooled"]["per_au"]) == set(protocol.labels)
    assert results["missing"] == {}
    assert results["baselines"]["training-mean"] == {"left_out": "the training labels are not known"}
    assert results["baselines"]["all-zero"]["mean"].keys() >= {protocol.metrics[0]}
    metric = protocol.metrics[0]
    folds = [results["folds"][part]["mean"][metric] for part in protocol.tested]
    assert results["mean_of_folds"]["mean"][metric] == pytest.approx(np.mean(folds))
    rows = list(csv.reader((tmp_path / "table.csv").open()))
    assert rows[0] == ["method", *protocol.labels, "mean", "source"]
    assert len(rows) == 3 + len(published_rows(name, metric))
    scale, digits = (100, 1) if metric == "f1" else (1, 3)
    assert rows[1][-2] == f"{results['mean_of_folds']['mean'][metric] * scale:.{digits}f}"
    assert (tmp_path / "table.tex").read_text().count(r"\\") == len(rows)
    assert (tmp_path / "table.md").read_text().count("\n|") == len(rows) + 1
    tested = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert set(tested["tested_part"]) == set(protocol.tested)
    assert (tested.groupby(["subject", "clip"])["tested_part"].nunique() == 1).all()
    assert not tested.duplicated(["subject", "clip", "frame"]).any()
    known = np.isfinite(np.stack(tested["references"]))[:, get_format(protocol.format).labels.index(protocol.labels[0])]
    assert results["pooled"]["per_au"][protocol.labels[0]]["n"] == known.sum()
    assert list(tmp_path.glob("unfinished*")) == []


def test_parts_are_tested_by_their_own_checkpoint(fake_records, tiny_checkpoint, tmp_path, capsys):
    folder = fake_records("bp4d-3fold", leave_out=("F001",))
    checkpoints = {}
    parts = protocol_parts("bp4d-3fold")
    for part in parts:
        checkpoints[part] = tmp_path / part
        shutil.copytree(tiny_checkpoint, checkpoints[part])
        train = [f"bp4d:{name}" for other, names in parts.items() if other != part for name in names]
        write_training_manifest(checkpoints[part], training_manifest(train, [], [], ["bp4d"], {}))

    def run(**models):
        given = [f"{part}={model}" for part, model in models.items()]
        main(["--protocol", "bp4d-3fold", "--model", *given, "--data", str(folder), "--out", str(tmp_path / "out")])

    run(**checkpoints)
    assert "P1: no record of F001; the result is not the whole protocol's." in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["missing"] == {"P1": ["F001"]}
    assert {each["trained_people"] for each in results["provenance"].values()} == {"checked"}
    swapped = {**checkpoints, "P1": checkpoints["P2"]}
    with pytest.raises(ValueError, match=r"has seen 13 of these 13 people in its train part: bp4d:F002"):
        run(**swapped)
    with pytest.raises(ValueError, match="--model P1=CHECKPOINT P2=CHECKPOINT P3=CHECKPOINT"):
        run(P1=checkpoints["P1"])


def test_calibrating_on_the_people_whom_a_protocol_validates_on(fake_records, tiny_checkpoint, tmp_path):
    """The folder's own parts are others: some of those people trained, some are tested."""
    folder = fake_records("disfa-3fold")
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    split = protocol_split("disfa-3fold", "P2", 0, 0.3)
    assert len(split["validation"]) == 5
    manifest = training_manifest([f"disfa:{name}" for name in split["train"]], [], [], ["disfa"], {})
    write_training_manifest(checkpoint, manifest)
    protocol = "protocol: disfa-3fold, tested: P2"
    flags = ("--out", tmp_path / "out", "--data")
    run_calibrate = lambda entry: main([str(word) for word in ("calibrate", "--model", checkpoint, *flags, entry)])
    with pytest.raises(ValueError, match=r"has 2 of the 5 subjects .* let a larger share"):
        run_calibrate(f"{{path: {folder}, {protocol}}}")
    run_calibrate(f"{{path: {folder}, {protocol}, validation: 0.3}}")
    assert read_training_manifest(str(checkpoint))["people"]["calibration"] == [
        f"disfa:{name}" for name in split["validation"]
    ]
    fitted_on = json.loads((checkpoint / "config.json").read_text())["calibration"]["fitted_on"]
    assert (list(fitted_on["data"]), fitted_on["subjects"]) == ([str(folder)], 5)


def test_wrong_data_is_named(rendered_records, tiny_checkpoint, tmp_path):
    models = [f"{part}={tiny_checkpoint}" for part in ("P1", "P2", "P3")]
    words = ["--protocol", "bp4d-3fold", "--model", *models, "--data", str(rendered_records), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="bp4d-3fold needs records of bp4d in format 'bp4d'"):
        main(words)


def test_records_of_other_data_sets_may_lie_beside_the_tested_ones():
    """BP4D's F001 is missing, whoever is called F001 elsewhere; strangers belong to no part and are not asked for."""
    protocol = get_protocol("bp4d-3fold")
    people = [name for part in protocol.parts.values() for name in part if name != "F001"]
    rows = [{"dataset": "bp4d", "format": "bp4d", "subject": name} for name in people]
    rows += [{"dataset": "bp4d", "format": "bp4d-intensity", "subject": "F001"}]
    rows += [{"dataset": "rendered", "format": "bp4d", "subject": name} for name in ("F001", "R0-000001")]
    assert missing_names(datasets.Dataset.from_list(rows), protocol) == {"P1": ["F001"]}


def prediction(fmt, subject, present, references):
    numbers = [float(each) for each in present]
    return {
        "dataset": "bp4d",
        "subject": subject,
        "format": fmt,
        "values": numbers,
        "expected": numbers,
        "probability": numbers,
        "present": numbers,
        "references": references,
    }


def test_aggregates_by_hand():
    """Two aggregates that differ: the parts' F1 averaged, and F1 over all images."""
    protocol = get_protocol("bp4d-3fold")
    rest = [0.0] * 11
    one = [prediction("bp4d", "F001", [1, *rest], [1.0, *rest]), prediction("bp4d", "F002", [0, *rest], [1.0, *rest])]
    two = [prediction("bp4d", "F003", [1, *rest], [1.0, *rest])] * 3
    scores = protocol_scores({"P1": one, "P2": two}, protocol)
    truth, guess = [1, 1, 1, 1, 1], [1, 0, 1, 1, 1]
    assert scores["mean_of_folds"]["per_au"]["AU1"]["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["pooled"]["per_au"]["AU1"]["f1"] == pytest.approx(f1_score(truth, guess))
    assert scores["pooled"]["per_au"]["AU2"]["undefined"]["f1"] == "no positive label and none predicted"
    assert len(scores["pooled"]["mean_interval"]["f1"]) == 2


def test_published_rows_are_ranked():
    f1 = [row["mean"] for row in published_rows("bp4d-3fold", "f1")]
    assert f1 == sorted(f1, reverse=True)
    mae = [row["mean"] for row in published_rows("disfa-intensity-3fold", "mae")]
    assert mae == sorted(mae)
    assert mae


def test_tables_escape():
    rows = [["method", "AU1", "mean", "source"], ["a|b & 5%_x", "1", "2", "here"]]
    assert "a\\|b" in as_markdown(rows)
    assert r"a|b \& 5\%\_x & 1 & 2 \\ % here" in as_latex(rows, "c")


def test_shared_aus():
    assert sources("AU12", FORMATS["feafa"]) == ("AU12L", "AU12R")
    assert sources("AU12L", FORMATS["disfa"]) == ()
    assert shared_labels(FORMATS["feafa"], FORMATS["disfa"]) == (
        "AU2",
        "AU4",
        "AU5",
        "AU9",
        "AU12",
        "AU17",
        "AU20",
        "AU26",
    )
    assert len(shared_labels(FORMATS["bp4d"], FORMATS["disfa"])) == 7
    assert best_asked([FORMATS["bp4d"], FORMATS["feafa"]], FORMATS["disfa"]).name == "feafa"
    assert best_asked([FORMATS["bp4d"], FORMATS["disfa"]], FORMATS["disfa"]).name == "disfa"
    with pytest.raises(ValueError, match="no AU in common"):
        best_asked([AUFormat("a", ("AU1",), "occurrence")], AUFormat("b", ("AU2",), "occurrence"))


def test_transfer_by_hand():
    asked, known = AUFormat("c", ("AU12L", "AU12R", "AU4L"), "continuous"), AUFormat("i", ("AU12", "AU4"), "intensity")
    rows = [
        prediction("i", "F001", [1, 0, 1], [2.0, 5.0]),  # a side is enough; AU4 cannot be told from one side
        prediction("i", "F002", [0, 0, 1], [3.0, 5.0]),
        prediction("i", "F003", [0, 1, 1], [1.0, NAN]),
        prediction("i", "F004", [0, 0, 1], [0.0, NAN]),
    ]
    scores = transfer_scores(rows, asked, known)
    assert list(scores["per_au"]) == ["AU12"]
    assert scores["per_au"]["AU12"]["f1"] == pytest.approx(f1_score([1, 1, 0, 0], [1, 0, 1, 0]))
    assert scores["asked"] == {"format": "c", "presence_threshold": 0.3}


def test_matrix_command(rendered_records, tiny_checkpoint, tmp_path):
    checkpoint = tmp_path / "disfa-model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    write_training_manifest(checkpoint, training_manifest(["disfa:SN001"], [], [], ["disfa"], {}))
    words = ["matrix", "--model", str(checkpoint), str(tiny_checkpoint), "--data", str(rendered_records)]
    main([*words, "--out", str(tmp_path / "out")])
    cells = json.loads((tmp_path / "out" / "matrix.json").read_text())["cells"]
    cell = cells[str(checkpoint)][f"{rendered_records}:bp4d"]
    assert cell["asked"]["format"] == "disfa"
    assert set(cell["per_au"]) == set(FORMATS["bp4d"].labels) & set(FORMATS["disfa"].labels)
    assert cells[str(tiny_checkpoint)][f"{rendered_records}:bp4d"]["asked"]["format"] == "bp4d"
    table = (tmp_path / "out" / "matrix.md").read_text()
    assert "| trained |" in table
    beside = cell["baselines"]
    assert set(beside["all-zero"]["per_au"]) == set(cell["per_au"])
    assert beside["all-zero"]["mean"]["f1"] == 0
    assert beside["neighbour-copy"] == {"left_out": "no two frames of one clip"}
    assert f"| beside {checkpoint}: neighbour-copy | no two frames of one clip |" in table
    assert len(load_records(rendered_records, part="test", formats=["bp4d"])) == cell["n"]
