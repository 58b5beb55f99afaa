"""Formats of one's own from YAML files, on every command that takes a format."""

import json
import pickle
import shutil

import numpy as np
import pytest
from conftest import ROOT, load_tool
from PIL import Image

from au_llava import eval_au, prepare_data, recognize_au
from au_llava.action_units import BUILT_IN, FORMATS, AUFormat, get_format, own_formats
from au_llava.au_datasets.mixing import TrainingData
from au_llava.au_datasets.records import load_records
from au_llava.au_datasets.weak_teacher import WeakTeacher
from au_llava.au_faces.landmarks import BLENDSHAPES
from au_llava.au_runs.formats import as_stored, known_format, read_format
from au_llava.au_runs.manifests import read_training_manifest, training_manifest, write_training_manifest
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.command import main as train
from au_llava.au_training.command import make_parser
from au_llava.au_training.options import AUArguments

YAML = "name: smiles\nlabels: [AU6, AU12L, AU28]\nscale: intensity\n"
SMILES = AUFormat("smiles", ("AU6", "AU12L", "AU28"), "intensity")


@pytest.fixture(autouse=True)
def only_built_in():
    yield
    for fmt in own_formats():
        del FORMATS[fmt.name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "smiles.yaml"
    path.write_text(YAML)
    return path


def test_a_file_is_a_format_known_by_its_name(file):
    assert read_format(file) == SMILES
    assert own_formats() == []  # reading is not yet knowing
    assert known_format(str(file)) == SMILES
    assert get_format("smiles") == known_format("smiles") == SMILES
    assert known_format(str(file)) == SMILES  # again
    assert own_formats() == [SMILES]
    assert as_stored(FORMATS["bp4d"]) == "bp4d"
    assert get_format(as_stored(SMILES)) == SMILES


def test_a_threshold_may_be_given(file):
    file.write_text(YAML + "presence_threshold: 4\n")
    assert read_format(file).presence_threshold == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: a\nlabels: [AU6]\nscale: intensity\nsclae: 3\n", r"needs name, labels, scale .* not .*'sclae'"),
        ("name: a\nscale: intensity\n", "needs name, labels, scale"),
        ("name: a\nlabels: [AU6, AU99]\nscale: intensity\n", r"unknown AUs \['AU99'\]"),
        ("name: a\nlabels: [AU6, AU6]\nscale: intensity\n", "more than once"),
        ("name: a\nlabels: AU6\nscale: intensity\n", "non-empty sequence"),
        ("name: a\nlabels: [[AU6]]\nscale: intensity\n", "smiles.yaml: "),
        ("name: a\nlabels: [AU6]\nscale: 0-5\n", "unknown scale '0-5'"),
        ("name: a\nlabels: [AU6]\nscale: intensity\npresence_threshold: 7\n", "presence_threshold 7"),
        ("- AU6\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("name: [a\n", "is not YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(file, content, message):
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        known_format(str(file))
    assert "smiles.yaml" in str(error.value)
    assert own_formats() == []


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read: No such file"):
        known_format(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ValueError, match="is not YAML"):
        known_format(str(tmp_path / "bytes.yaml"))


def test_a_name_has_one_meaning(file):
    file.write_text(YAML.replace("smiles", "bp4d"))
    with pytest.raises(ValueError, match=r"smiles.yaml: the format 'bp4d' means another one already"):
        known_format(str(file))
    assert FORMATS["bp4d"] in BUILT_IN


def test_workers_of_a_data_loader_know_it_however_they_start(file, tiny):
    """A new process knows the built-in formats only, until it unpickles the collator."""
    known_format(str(file))
    content = pickle.dumps(AUCollator(tiny[1]))
    del FORMATS["smiles"]
    pickle.loads(content)
    assert get_format("smiles") == SMILES


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Rendered in a format of one's own by a worker process, and in a built-in one."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "smiles.yaml").write_text(YAML)
    words = "rendered --subjects 4 --images-per-subject 2 --size 32 --validation 0.25 --test 0.25 --workers 1"
    words = [*words.split(), "--formats", "disfa", str(folder / "smiles.yaml"), "--out", str(folder / "faces")]
    assert prepare_data.run(words) == 0
    del FORMATS["smiles"]
    return folder / "faces"


def test_rendered_records_bring_their_format(faces):
    records = load_records(faces)  # makes it known
    assert get_format("smiles") == SMILES
    assert records.unique("format") == ["disfa", "smiles"]
    rows = {name: records.filter(lambda row, name=name: row["format"] == name) for name in ("disfa", "smiles")}
    of_disfa = [row[FORMATS["disfa"].labels.index("AU6")] for row in rows["disfa"]["values"]]
    assert [row[0] for row in rows["smiles"]["values"]] == of_disfa
    assert json.loads((faces / "manifest.json").read_text())["own_formats"] == [SMILES.to_dict()]


def test_records_with_another_meaning_are_refused(faces, file):
    file.write_text(YAML.replace("AU6, AU12L", "AU12L, AU6"))
    known_format(str(file))
    with pytest.raises(ValueError, match="faces: the format 'smiles' means another one already"):
        load_records(faces)


def test_a_table_is_read_in_it(file, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,subject,AU06,AU12L,AU28\na.png,anna,3,0,5\n")
    words = ["table", "--root", tmp_path / "labels.csv", "--format", file, "--out", tmp_path / "out"]
    assert prepare_data.run([*map(str, words), "--validation", "0", "--test", "1"]) == 0
    del FORMATS["smiles"]
    assert load_records(tmp_path / "out")[0]["values"] == [3, 0, 5]


def test_training_takes_files(file, faces):
    assert AUArguments(data=["x"], formats=["bp4d", str(file)]).formats == ["bp4d", "smiles"]
    assert TrainingData.read({"path": str(faces), "formats": [str(file)]}).formats == ["smiles"]
    assert len(TrainingData(str(faces), formats=["smiles"]).load("test")) == 2
    with pytest.raises(ValueError, match="cannot be read"):
        AUArguments(data=["x"], formats=["nowhere.yaml"])


@pytest.mark.slow
def test_a_model_is_trained_in_it(tiny_checkpoint, faces, file, tmp_path):
    """Records bring their format, the loader's workers know it, and recognition of the result takes the file."""
    words = ["--model_name_or_path", tiny_checkpoint, "--data", faces, "--formats", file, "--use_cpu", "true"]
    words += ["--bf16", "false", "--report_to", "none", "--max_steps", 2, "--per_device_train_batch_size", 2]
    words += ["--causal_share", 0.5, "--dataloader_num_workers", 1, "--output_dir", tmp_path / "trained"]
    train(*make_parser().parse_args_and_config([*map(str, words)]))
    assert read_training_manifest(str(tmp_path / "trained"))["formats"] == ["smiles"]
    template = "decision_template.jinja"  # knows the built-in formats, as the code that travels does
    assert (tmp_path / "trained" / template).read_text() == (tiny_checkpoint / template).read_text()
    face, table = ROOT / "assets" / "faces" / "smile.png", tmp_path / "aus.csv"
    words = [face, "--no-detect", "--model", tmp_path / "trained", "--formats", file, "--out", table]
    assert recognize_au.run([*map(str, words)]) == 0
    assert table.read_text().splitlines()[0].endswith(",AU06_r,AU12L_r,AU28_r")


def test_recognition_and_evaluation_take_files(tiny_checkpoint, faces, file, tmp_path):
    """With the checkpoint's own copy of the code, which knows no format by such a name."""
    face = str(ROOT / "assets" / "faces" / "smile.png")
    table = tmp_path / "aus.csv"
    words = [face, "--no-detect", "--model", str(tiny_checkpoint), "--formats", str(file), "--out", str(table)]
    assert recognize_au.run(words) == 0
    assert table.read_text().splitlines()[0].endswith(",AU06_r,AU12L_r,AU28_r")
    assert json.loads((tmp_path / "aus.csv.provenance.json").read_text())["formats"] == [SMILES.to_dict()]
    out = tmp_path / "scores"
    words = ["--model", tiny_checkpoint, "--data", faces, "--formats", file, "--out", out]
    assert eval_au.run([*map(str, words)]) == 0
    assert [*json.loads((out / "results.json").read_text())["formats"]] == ["smiles"]
    for words in (["report", out], ["compare", out, out, "--resamples", 20]):  # in a new process, without the file
        del FORMATS["smiles"]
        assert eval_au.run([*map(str, words)]) == 0
        assert get_format("smiles") == SMILES


def test_a_checkpoint_remembers_the_formats_that_it_was_trained_in(tiny_checkpoint, faces, file, tmp_path):
    """So `matrix` can ask for one on a data set that does not have it."""
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    known_format(str(file))
    write_training_manifest(model, training_manifest(["a:b"], [], [], ["smiles"], {}))
    del FORMATS["smiles"]
    lines = ["image,subject,AU6"]
    for person in "ab":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{person}.png")
        lines.append(f"{person}.png,{person},3")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words = ["table", "--root", tmp_path / "labels.csv", "--format", "disfa", "--validation", 0, "--test", 1]
    assert prepare_data.run([*map(str, [*words, "--out", tmp_path / "data"])]) == 0
    words = ["matrix", "--model", model, "--data", tmp_path / "data", "--out", tmp_path / "matrix"]
    assert eval_au.run([*map(str, words)]) == 0
    cells = json.loads((tmp_path / "matrix" / "matrix.json").read_text())["cells"][str(model)]
    assert [*cells[f"{tmp_path / 'data'}:disfa"]["per_au"]] == ["AU6"]


@pytest.mark.parametrize("program", [recognize_au, eval_au, load_tool("export")])
def test_commands_say_what_is_wrong_with_a_file(program, file, tmp_path, capsys):
    file.write_text("name: smiles\n")
    words = [*(["a.png"] if program is recognize_au else []), "--formats", str(file), "--out", str(tmp_path / "a.csv")]
    assert program.run([*words, *(["--data", "x"] if program is eval_au else [])]) == 1
    assert f"{file}: a format's dict needs name, labels, scale" in capsys.readouterr().err


def test_the_format_for_animators_has_weak_values_of_photographs():
    """Whatever the weak teacher knows of it: an open jaw is AU26."""
    fmt = known_format(str(ROOT / "recipes" / "formats" / "arkit.yaml"))
    blendshapes = np.zeros((2, len(BLENDSHAPES)), np.float32)
    blendshapes[1, BLENDSHAPES.index("jawOpen")] = 0.9
    closed, opened = WeakTeacher.load().values(blendshapes, fmt.name)[:, fmt.labels.index("AU26")]
    assert closed == 0
    assert opened > 0.3
