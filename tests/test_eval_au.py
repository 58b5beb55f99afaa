"""Evaluation: what is written, that it agrees with the metrics computed apart, and that processes do not matter."""

import json
import shutil

import commands
import numpy as np
import pandas
import pytest
from conftest import ROOT
from datasets import Dataset, Image
from PIL import Image as Picture
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import BatchNorm2d
from transformers import AutoProcessor

from au_llava import eval_au, prepare_data
from au_llava.action_units import FORMATS, AUFormat
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.command import COMMANDS, main, parse
from au_llava.au_evaluation.commands import common
from au_llava.au_evaluation.commands.compare import comparison_table
from au_llava.au_evaluation.predictions import predict, write_predictions
from au_llava.au_evaluation.scoring import score_predictions, scores_table
from au_llava.au_runs.engines import TorchEngine
from au_llava.au_runs.files import only_run
from au_llava.au_runs.manifests import seen_people, training_manifest, write_training_manifest
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

ALL = ("bp4d", "disfa", "feafa")


def evaluate(checkpoint, records, out, *flags):
    words = ["--model", checkpoint, "--data", records, "--out", out, *flags]
    main([str(word) for word in words])
    return json.loads((out / "results.json").read_text()), Dataset.from_parquet(str(out / "predictions.parquet"))


@pytest.fixture(scope="module")
def evaluated(tiny_checkpoint, rendered_records, tmp_path_factory):
    return evaluate(tiny_checkpoint, rendered_records, tmp_path_factory.mktemp("eval"), "--batch_size", 2)


def test_every_record_is_predicted_once_beside_its_labels(evaluated, rendered_records):
    _, predictions = evaluated
    records = load_records(rendered_records, part="test")
    key = ("subject", "clip", "frame", "format")
    expected = {tuple(row[k] for k in key): row["values"] for row in records.remove_columns("image")}
    actual = {tuple(row[k] for k in key): row["references"] for row in predictions}
    assert actual == expected
    assert len(predictions) == len(records)
    for row in predictions:
        labels = FORMATS[row["format"]].labels
        assert len(row["values"]) == len(row["expected"]) == len(row["probability"]) == len(labels)
        assert row["problems"] == []


def test_scores_equal_independent_ones(evaluated):
    results, predictions = evaluated
    for name in ALL:
        rows = [row for row in predictions if row["format"] == name]
        references = np.array([row["references"] for row in rows])
        read = np.array([row["values" if name == "bp4d" else "expected"] for row in rows])
        for column, label in enumerate(FORMATS[name].labels):
            scores = results["formats"][name]["per_au"][label]
            truth, guess = references[:, column], read[:, column]
            if name == "bp4d":
                assert scores["accuracy"] == pytest.approx(accuracy_score(truth, guess))
                if truth.any():
                    assert scores["f1"] == pytest.approx(f1_score(truth, guess, zero_division=0))
                assert scores["support"] == truth.sum()
            else:
                medians = np.array([row["median"][column] for row in rows])
                assert scores["mae"] == pytest.approx(np.abs(truth - medians).mean(), rel=1e-5)
                if np.ptp(truth) > 0:
                    assert scores["pcc"] == pytest.approx(pearsonr(truth, guess).statistic, abs=1e-6)
                else:
                    assert scores["pcc"] is None
        means = [scores["mae"] for scores in results["formats"]["feafa"]["per_au"].values()]
        assert results["formats"]["feafa"]["mean"]["mae"] == pytest.approx(np.mean(means))


def test_results_say_where_they_come_from(evaluated, rendered_records):
    results, _ = evaluated
    provenance = results["provenance"]
    assert results["schema_version"] == 2
    manifest = json.loads((rendered_records / "manifest.json").read_text())
    assert provenance["data"] == {str(rendered_records): manifest["content_sha256"]}
    assert (provenance["part"], provenance["decoding"]) == ("test", "slots")
    assert provenance["packages"]["transformers"]
    assert results["formats"]["bp4d"]["n"] == 6
    assert results["formats"]["bp4d"]["unparsed"] == 0


def test_baselines_stand_beside_the_scores(evaluated, tiny_checkpoint, rendered_records, tmp_path):
    """Of a checkpoint whose training labels are not known they are those of the evaluated folder's train part."""
    results, predictions = evaluated
    assert results["provenance"]["training_labels"] == "train part of the evaluated folders"
    train = load_records(rendered_records, part="train", formats=["disfa"])["values"][:]
    test = np.array([row["references"] for row in predictions if row["format"] == "disfa"])
    found = results["formats"]["disfa"]["baselines"]
    assert found["all-zero"]["mean"]["mae"] == pytest.approx(test.mean())
    assert found["training-mean"]["mean"]["mae"] == pytest.approx(np.abs(test - np.mean(train, axis=0)).mean())
    assert found["neighbour-copy"] == {"left_out": "no two frames of one clip"}  # rendered faces are no recordings
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    labels = {"disfa": {label: {"mean": 1.0, "rate": 0.1, "n": 9} for label in FORMATS["disfa"].labels}}
    write_training_manifest(checkpoint, training_manifest([], [], [], ["disfa"], {}, labels=labels))
    results, _ = evaluate(checkpoint, rendered_records, tmp_path / "out", "--formats", "disfa")
    assert results["provenance"]["training_labels"] == "training manifest"
    found = results["formats"]["disfa"]["baselines"]["training-mean"]
    assert found["mean"]["mae"] == pytest.approx(np.abs(test - 1).mean())


@pytest.mark.parametrize("decoding", ["constrained", "free"])
def test_other_decoders(tiny_checkpoint, rendered_records, tmp_path, decoding):
    flags = ["--decoding", decoding, "--formats", "disfa", "--max_images", 2]
    results, predictions = evaluate(tiny_checkpoint, rendered_records, tmp_path, *flags)
    assert list(results["formats"]) == ["disfa"]
    assert len(predictions) == 2
    unread = sum(np.isnan(row["values"]).sum() for row in predictions)
    assert results["formats"]["disfa"]["unparsed"] == unread
    if decoding == "constrained":
        assert unread == 0


def test_two_processes_give_the_same_predictions(evaluated, tiny_checkpoint, rendered_records, tmp_path):
    words = ["--model", tiny_checkpoint, "--data", rendered_records, "--out", tmp_path, "--batch_size", 2]
    code, output = commands.run(words, tmp_path / "log", processes=2, script=ROOT / "eval_au.py")
    assert code == 0, output
    assert output.count("Written: ") == 1  # by the first process; two that know nothing of each other write twice
    results, _ = evaluated
    assert json.loads((tmp_path / "results.json").read_text())["formats"] == results["formats"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--part", "holiday"], "no record of part 'holiday' in"),
        (["--formats", "bp5d"], "bp5d"),
    ],
)
def test_bad_input_is_named(tiny_checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(tiny_checkpoint, rendered_records, tmp_path, *flags)


def test_a_killed_evaluation_goes_on(evaluated, tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    """What was read before is not read again, and the numbers are those of an uninterrupted run."""
    seen = []
    recognize = AuLlavaForConditionalGeneration.recognize

    def failing(self, processor, images, **options):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return recognize(self, processor, images, **options)

    monkeypatch.setattr(AuLlavaForConditionalGeneration, "recognize", failing)
    monkeypatch.setattr(common, "open_engine", local(tiny_checkpoint))
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_checkpoint, rendered_records, tmp_path, "--batch_size", 2)
    kept = tmp_path / "unfinished" / "process-00000.jsonl"
    assert len(kept.read_text().splitlines()) == 1 + 2 * 2 * 3  # identity; two batches of two images in three formats
    with kept.open("a") as handle:
        handle.write('{"row": 12, "asked": "bp')  # the kill cut a line
    with pytest.raises(ValueError, match="another run \\(other batch_size\\)"):
        evaluate(tiny_checkpoint, rendered_records, tmp_path, "--batch_size", 3)
    with monkeypatch.context() as changed:
        changed.setattr(common, "open_engine", local(tiny_checkpoint, mirror_images=True))
        with pytest.raises(ValueError, match="another run \\(other mirror_images\\)"):
            evaluate(tiny_checkpoint, rendered_records, tmp_path, "--batch_size", 2)
    results, predictions = evaluate(tiny_checkpoint, rendered_records, tmp_path, "--batch_size", 2)
    assert seen == [2, 2, 2, 2]
    assert results["formats"] == evaluated[0]["formats"]
    assert repr(predictions.to_list()) == repr(evaluated[1].to_list())  # NaN is not equal to itself
    assert not kept.exists()


@pytest.mark.parametrize("command", [["run"], ["protocol", "disfa-3fold"]])
def test_two_evaluations_do_not_share_a_folder(tmp_path, command):
    """The first to end would delete the journal that the other goes on with."""
    words = [*command, "--model", "P1=x", "--data", "nowhere", "--out", str(tmp_path)]
    with only_run(tmp_path, "--out"), pytest.raises(ValueError, match=r"Another run is writing to .*another --out"):
        main(words)
    with pytest.raises((ValueError, FileNotFoundError), match=r"nowhere|P1=CHECKPOINT"):
        main(words)


def local(checkpoint, **config):
    """Opens an engine with the package's own classes instead of the copies that remote code makes."""
    return lambda wish: TorchEngine(
        AuLlavaForConditionalGeneration.from_pretrained(checkpoint, **config).eval(),
        AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True),
    )


def test_a_broken_image_is_reported_and_the_rest_is_read(tiny_checkpoint, rendered_records):
    engine = local(tiny_checkpoint)(None)
    records = load_records(rendered_records, part="test", formats=["bp4d"])
    images = records.cast_column("image", Image(decode=False))["image"][:]
    images[1] = {"bytes": b"no image", "path": None}
    broken = records.remove_columns("image").add_column("image", images, feature=Image())
    timing = {}
    whole = predict(engine, records, batch_size=2)
    rows = predict(engine, broken, batch_size=2, timing=timing)
    assert [row["row"] for row in rows] == list(range(6))
    assert "image could not be read" in rows[1]["problems"][0]
    assert np.isnan(rows[1]["values"]).all()
    for index in (0, 2, 3, 4, 5):
        np.testing.assert_allclose(rows[index]["probability"], whole[index]["probability"], atol=1e-5)
    assert timing["images"] == 6
    assert 0 <= timing["waited_seconds"] <= timing["seconds"]
    scores = score_predictions(rows)["bp4d"]
    assert scores["unparsed"] == 12


def test_images_that_cannot_be_read_are_told_and_read_when_they_are_back(tiny_checkpoint, tmp_path, capsys):
    lines = ["image,subject,AU1"]
    for index in range(3):
        Picture.new("RGB", (32, 32), (80 * index,) * 3).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png,{index},{index % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words = ["table", "--root", tmp_path / "labels.csv", "--format", "bp4d", "--validation", 0, "--test", 1]
    assert prepare_data.run([*map(str, [*words, "--out", tmp_path / "data"])]) == 0
    words = [*map(str, ["--model", tiny_checkpoint, "--data", tmp_path / "data", "--out", tmp_path / "eval"])]
    (tmp_path / "1.png").rename(tmp_path / "away.png")
    assert eval_au.run(words) == 0
    assert "1 of 3 images could not be read; the first: image could not be read: " in capsys.readouterr().err
    records, engine = load_records(tmp_path / "data", part="test"), local(tiny_checkpoint)(None)
    kept = tmp_path / "kept"
    assert [bool(row["problems"]) for row in predict(engine, records, keep=kept)] == [False, True, False]
    (tmp_path / "away.png").rename(tmp_path / "1.png")
    assert not any(row["problems"] for row in predict(engine, records, keep=kept))  # not taken from the journal
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no picture")
    before = (tmp_path / "eval" / "results.json").read_bytes()
    assert eval_au.run(words) == 1
    assert "no image could be read, of 3; the first: image could not be read" in capsys.readouterr().err
    assert (tmp_path / "eval" / "results.json").read_bytes() == before


def test_a_journal_is_of_the_pictures_that_were_read(tiny_checkpoint, rendered_records, tmp_path):
    """Another crop of the same faces has the same keys and labels: what was read from the first is not taken for it."""
    engine, read = local(tiny_checkpoint)(None), []
    recognize = engine.recognize
    engine.recognize = lambda images, *options: read.append(len(images)) or recognize(images, *options)
    records = load_records(rendered_records, part="test", formats=["bp4d"])
    images = records.cast_column("image", Image(decode=False))["image"][:]
    (tmp_path / "other.png").write_bytes(images[0]["bytes"])
    images[4] = {"bytes": None, "path": str(tmp_path / "other.png")}
    crop = records.remove_columns("image").add_column("image", images, feature=Image())
    first = predict(engine, records, batch_size=2, keep=tmp_path / "kept")
    assert repr(predict(engine, records, batch_size=2, keep=tmp_path / "kept")) == repr(first)
    assert read == [2, 2, 2]
    again = predict(engine, crop, batch_size=2, keep=tmp_path / "kept")
    assert read == [2, 2, 2, 2]
    assert repr(again[:4]) == repr(first[:4])
    assert again[4]["expected"] == pytest.approx(first[0]["expected"], abs=1e-5) != first[4]["expected"]


def test_a_journal_is_of_the_checkpoint_and_the_formats_that_were_read(
    tiny_checkpoint, rendered_records, tmp_path, monkeypatch
):
    """Weights alone do not tell: what the processor makes of a picture is as much a part of a reading."""
    monkeypatch.setitem(FORMATS, "mine", AUFormat("mine", ("AU6", "AU12"), "intensity", 3))
    records = load_records(rendered_records, part="test", formats=["bp4d"]).select(range(2))
    options = {"keep": tmp_path / "kept", "formats": ("mine",)}
    first = predict(local(tiny_checkpoint)(None), records, **options)
    assert repr(predict(local(tiny_checkpoint)(None), records, **options)) == repr(first)
    engine = local(tiny_checkpoint)(None)
    images, config = engine.processor.image_processor, engine.model.config
    statistics = next(module for module in engine.model.modules() if isinstance(module, BatchNorm2d))._buffers
    for owner, name, value in (
        (vars(images), "image_mean", (0.4, 0.4, 0.4)),
        (vars(images), "resample", 0),
        (vars(images), "crop_size", {"height": 16, "width": 16}),
        (vars(engine.processor), "chat_template", engine.processor.chat_template + " "),
        (vars(config), "vision_feature_layer", -2),
        (vars(engine.model.generation_config), "repetition_penalty", 2.0),
        (statistics, "running_mean", statistics["running_mean"] + 1),
    ):
        with monkeypatch.context() as changed:
            changed.setitem(owner, name, value)
            with pytest.raises(ValueError, match=r"another run \(other checkpoint\)"):
                predict(engine, records, **options)
    monkeypatch.setitem(FORMATS, "mine", AUFormat("mine", ("AU6", "AU12"), "intensity", 2))
    with pytest.raises(ValueError, match=r"another run \(other formats\)"):
        predict(engine, records, **options)


def test_predictions_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    def write_half(_, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    write_predictions(tmp_path, [{"row": 1}])
    before = (tmp_path / "predictions.parquet").read_bytes()
    monkeypatch.setattr(Dataset, "to_parquet", write_half)
    with pytest.raises(OSError, match="No space"):
        write_predictions(tmp_path, [{"row": 2}])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_trained_people_are_not_tested(tiny_checkpoint, rendered_records, tmp_path, capsys):
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    records = load_records(rendered_records)
    test = people_of(load_records(rendered_records, part="test"))
    others = sorted(set(people_of(records)) - set(test))
    base = training_manifest(test[:1], [], [str(rendered_records)], ["bp4d"], {})
    write_training_manifest(checkpoint, training_manifest(others, [], [], ["bp4d"], {}, base=base))
    with pytest.raises(ValueError, match=f"has seen 1 of these {len(test)} people in its train part: {test[0]}"):
        evaluate(checkpoint, rendered_records, tmp_path / "out")
    people = people_of(load_records(rendered_records, part="validation"))
    write_training_manifest(checkpoint, training_manifest(people[:1], [], [], ["bp4d"], {}))
    with pytest.raises(ValueError, match=f"has seen 1 of these {len(people)} people in its train part: {people[0]}"):
        evaluate(checkpoint, rendered_records, tmp_path / "out", "--part", "validation")
    write_training_manifest(checkpoint, training_manifest(others, [], [], ["bp4d"], {}))
    results, _ = evaluate(checkpoint, rendered_records, tmp_path / "out", "--formats", "bp4d")
    assert results["provenance"]["trained_people"] == "checked"
    assert "does not say who it was trained on" not in capsys.readouterr().err
    write_training_manifest(checkpoint, training_manifest([], [], [], [], {}))  # as --calibrate leaves it
    results, _ = evaluate(checkpoint, rendered_records, tmp_path / "again", "--formats", "bp4d")
    assert results["provenance"]["trained_people"] == "unknown"
    assert f"{checkpoint} does not say who it was trained on" in capsys.readouterr().err


def test_nobody_is_named_twice_over_several_trainings_and_nobody_forgotten():
    first = training_manifest(["d:1", "d:2"], ["d:9"], [], ["bp4d"], {"seed": 1})
    second = training_manifest(["d:2", "d:3"], ["d:9"], [], ["bp4d"], {"seed": 2}, base=first)
    third = training_manifest(["d:3", "d:9"], ["d:8"], [], ["bp4d"], {"seed": 3}, base=second)
    empty = {"unlabelled": [], "calibration": []}
    assert third["people"] == {"train": ["d:3", "d:9"], "validation": ["d:8"], **empty}
    assert third["base"]["people"] == {"train": ["d:2"], "validation": ["d:9"], **empty}
    assert third["base"]["base"]["people"] == {"train": ["d:1"], "validation": [], **empty}
    assert [third["recipe"], third["base"]["recipe"], third["base"]["base"]["recipe"]] == [
        {"seed": 3},
        {"seed": 2},
        {"seed": 1},
    ]
    assert seen_people(third)["train"] == {"d:1", "d:2", "d:3", "d:9"}
    assert seen_people(third)["validation"] == {"d:8", "d:9"}
    assert first["people"]["train"] == ["d:1", "d:2"]  # what came in is left alone


def test_groups_are_audited(tiny_checkpoint, rendered_records, tmp_path):
    results, _ = evaluate(tiny_checkpoint, rendered_records, tmp_path, "--groups", "gender", "--formats", "bp4d")
    few = results["formats"]["bp4d"]["groups"]["too_small"]["gender"]
    assert sum(few.values()) == 3  # three people, too few to score any group
    with pytest.raises(ValueError, match="no column shoe_size"):
        evaluate(tiny_checkpoint, rendered_records, tmp_path, "--groups", "shoe_size")


def test_comparing_with_itself_and_with_another(evaluated, tiny_checkpoint, rendered_records, tmp_path, capsys):
    flags = ("--decoding", "constrained", "--formats", "disfa")
    evaluate(tiny_checkpoint, rendered_records, tmp_path / "one", *flags)
    evaluate(tiny_checkpoint, rendered_records, tmp_path / "two", "--formats", "disfa", "bp4d")
    main(["compare", str(tmp_path / "one"), str(tmp_path / "one"), "--out", str(tmp_path / "same.json")])
    same = json.loads((tmp_path / "same.json").read_text())["disfa"]
    assert same["mean"]["mae"]["difference"] == 0
    main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "other.json")])
    other = json.loads((tmp_path / "other.json").read_text())["disfa"]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    one, two = (each["formats"]["disfa"]["mean"]["mae"] for each in (one, two))
    assert other["mean"]["mae"]["difference"] == pytest.approx(one - two)
    assert "mean, 6 images" in capsys.readouterr().out
    evaluate(tiny_checkpoint, rendered_records, tmp_path / "three", "--formats", "bp4d")
    with pytest.raises(ValueError, match="none in common"):
        main(["compare", str(tmp_path / "one"), str(tmp_path / "three")])
    with pytest.raises(FileNotFoundError, match="make it with eval_au"):
        main(["compare", str(tmp_path / "one"), str(tmp_path / "nowhere")])


def test_subcommands_and_their_older_spellings():
    calls = {
        "--data d --out o": ("run", {"data": ["d"], "part": None, "batch_size": 32}),
        "run --data d --out o --batch_size 2": ("run", {"batch_size": 2}),
        "run --data d --out o --quantise 4bit": ("run", {"quantize": "4bit"}),
        "calibrate --data d e --out o": ("calibrate", {"data": ["d", "e"], "mirror": None}),
        "--model m --calibrate d e --no-mirror --out o": ("calibrate", {"data": ["d", "e"], "mirror": False}),
        "calibrate --data d --unlabeled u --out o": ("calibrate", {"unlabelled": ["u"]}),
        "protocol bp4d-3fold --data d --out o": ("protocol", {"protocol": "bp4d-3fold", "name": "AU-LLaVA"}),
        "--data d --protocol bp4d-3fold --model P1=a P2=b --out o": ("protocol", {"model": ["P1=a", "P2=b"]}),
        "--data d --protocol=disfa-3fold --out o": ("protocol", {"protocol": "disfa-3fold", "data": ["d"]}),
        "compare a b": ("compare", {"resamples": 5000, "out": None}),
        "matrix --model a b --data d --out o": ("matrix", {"model": ["a", "b"]}),
        "report a": ("report", {"data": None}),
    }
    for words, (name, expected) in calls.items():
        command, arguments = parse(words.split())
        assert command.__name__.rpartition(".")[2] == name, words
        assert {key: getattr(arguments, key) for key in expected} == expected, words


def test_wrong_commands_end_with_a_sentence(tmp_path, capsys):
    """Errors of the command line with 2, others with 1."""
    for words, status, sentence in (
        ("comapre a b", 2, "invalid choice: 'comapre'"),
        ("--data x --out y --modle z", 2, "--modle"),
        ("--data x --calibrate y --out z", 2, "not allowed with argument"),
        ("--data nowhere --out", 1, "eval_au.py: no data-*.parquet with a manifest.json in nowhere"),
        ("--data x --batch-size 0 --out y", 2, "--batch-size: expected a whole number of at least 1, got '0'"),
        ("--data x --max-images -1 --out y", 2, "--max-images: expected a whole number of at least 1, got '-1'"),
        ("compare nowhere nowhere", 1, "eval_au.py: There is no nowhere/predictions.parquet"),
    ):
        words = [*words.split(), *([str(tmp_path / "out")] if words.endswith("--out") else [])]
        if status == 2:
            with pytest.raises(SystemExit) as end:
                eval_au.run(words)
            assert end.value.code == 2, words
        else:
            assert eval_au.run(words) == 1, words
        assert sentence in capsys.readouterr().err, words


def test_files_that_eval_au_did_not_write_are_named(tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "predictions.parquet").write_text("no table")
    for command, sentence in (
        (["report", tmp_path], f"eval_au.py: {tmp_path} does not hold what eval_au.py writes"),
        (["compare", tmp_path, tmp_path], "predictions.parquet is damaged"),
    ):
        assert eval_au.run(list(map(str, command))) == 1
        assert sentence in capsys.readouterr().err
    pandas.DataFrame({"format": ["bp4d"]}).to_parquet(tmp_path / "predictions.parquet")
    assert eval_au.run(["compare", str(tmp_path), str(tmp_path)]) == 1
    assert "predictions.parquet is not of eval_au.py: it lacks clip, dataset" in capsys.readouterr().err


def test_tables_caution_where_subjects_are_few():
    difference = {"difference": 0.1, "interval": [0.05, 0.2], "p": 0.004}
    of_format = {"mean": {"f1": difference}, "per_au": {}, "n": 12, "subjects": 4}
    table = comparison_table({"bp4d": {**of_format, "subjects": 20}, "disfa": of_format}, "a", "b")
    assert table.caption.endswith("AUs with p < 0.05; 4 subjects are too few to trust them (take 20 or more)")
    assert comparison_table({"bp4d": {**of_format, "subjects": 20}}, "a", "b").caption.endswith("AUs with p < 0.05")
    scores = {"per_au": {}, "mean": {}, "mean_interval": {}, "n": 3, "per_subject": {"mine:1": {}}}
    assert scores_table({"disfa": scores}, "a").caption.endswith(
        "; 1 subject is too few to trust them (take 20 or more)"
    )


def test_help_teaches_with_an_example(capsys):
    for name in ("", *COMMANDS):
        with pytest.raises(SystemExit) as end:
            main([*name.split(), "--help"])
        assert end.value.code == 0
        assert f"python eval_au.py {name}" in capsys.readouterr().out, name
