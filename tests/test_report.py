"""The report: whole and self-contained, its numbers those of the evaluation, its curves those of the metrics."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from au_llava.action_units import FORMATS
from au_llava.au_evaluation.abstention import apply_abstention
from au_llava.au_evaluation.group_audit import group_audit
from au_llava.au_evaluation.parse_audit import parse_audit
from au_llava.au_evaluation.report import write_report
from au_llava.au_evaluation.report_data import load_evaluation, worst_errors
from au_llava.au_evaluation.report_figures import GRID, curves
from au_llava.au_evaluation.scoring import contradiction_counts, jsonable, score_predictions

HOSTILE = '<script>alert("&")</script> | ![x](http://x)'
IMAGES = 48
VOID = {"meta", "img", "br"}


def predictions(names, seed=0, probabilities=True) -> list[dict]:
    """Noisy readings of random labels of six people, one with a hostile name, whose AU1 is read wrong for sure.

    The last AU is never present, the second is not annotated in the first image, the third not read in the second.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name in names:
        fmt = FORMATS[name]
        highest, size = fmt.value_numbers[-1], (IMAGES, len(fmt.labels))
        labels = rng.choice([0, 0.2, 0.4, 1], size, p=[0.4, 0.2, 0.2, 0.2]) * highest
        labels = np.round(labels) if name == "bp4d" else labels
        labels[:, -1] = 0
        truth = labels >= fmt.presence_threshold
        probability = (0.5 + (truth - 0.5) * 0.4 + rng.normal(0, 0.2, size)).clip(0.01, 0.99)
        probability[:4, 0] = np.where(truth[:4, 0], 0.001, 0.999)
        expected = (labels + rng.normal(0, 0.2 * highest, size)).clip(0, highest)
        present = (probability >= 0.5).astype(float)
        labels[0, 1] = np.nan
        for values in (probability, expected, present):
            values[1, 2] = np.nan
        if not probabilities:
            probability[:] = np.nan
        for image in range(IMAGES):
            person = HOSTILE if image < 8 else f"S{image // 8}"
            row = {"dataset": "made", "subject": person, "clip": "0", "frame": image, "format": name, "row": len(rows)}
            row |= {"references": labels[image], "values": present[image], "expected": expected[image]}
            row |= {"probability": probability[image], "present": present[image], "text": "", "problems": []}
            rows.append({key: list(v) if isinstance(v, np.ndarray) else v for key, v in row.items()})
            rows[-1]["contradictions"] = ["AU1 is present in bp4d, but AU1 0 in disfa"] if name == "bp4d" else []
    return rows


def write(folder, rows, **more):
    """The folder as eval_au.py leaves it."""
    provenance = {"model": "runs/<b>mine</b>", "decoding": "slots", "data": {"data/made": "c0ffee"}, "commit": None}
    results = {"provenance": provenance, "formats": score_predictions(rows)}
    results["contradictions"] = contradiction_counts(rows)
    for name, entry in more.pop("entries", {}).items():
        results["formats"][name] |= entry
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(jsonable(results | more)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "predictions.parquet")
    return folder


def face(row):
    return Image.new("RGBA", (200, 150), (row["frame"], 0, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("report") / "eval", predictions(["bp4d", "bp4d-intensity", "feafa"]))
    assert write_report(folder, face) == folder / "report.html"
    return folder


def test_every_file_appears_whole(tmp_path, monkeypatch):
    placed, replace = set(), os.replace
    monkeypatch.setattr(os, "replace", lambda new, old: placed.add(Path(old).name) or replace(new, old))
    folder = write(tmp_path / "eval", predictions(["bp4d"]))
    before = {path.name for path in folder.iterdir()}
    write_report(folder, face)
    written = {path.name for path in folder.iterdir()} - before
    assert {"report.html", "report.md", "report_worst_bp4d_1.png", "report_reliability.png"} <= written <= placed


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


class Reader(HTMLParser):
    """Checks that tags are closed, and collects what they say."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def sections_of(page):
    return re.findall(r'<section id="(\w+)">', page)


def test_page_is_whole_and_self_contained(page):
    reader = Reader(page)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name, "#")
            assert target.startswith("data:image/") or target == "#" or target[1:] in ids
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_all_sections_are_there_and_listed(page):
    expected = ["scores", "bars", "table", "ranking", "reliability", "confusion", "risk", "worst"]
    expected += ["contradictions", "provenance"]
    assert sections_of(page) == expected
    assert re.findall(r'<a href="#(\w+)">', page) == expected


def test_figures_are_text_and_follow_the_theme(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 3 + 1 + 1 + 2 + 1
    for drawing in drawings:
        texts = [each.text for each in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
        assert "#1b1f24" not in drawing
        assert "var(--ink)" in drawing
        assert any(label in " ".join(filter(None, texts)) for label in ("AU1", "bp4d"))
        assert ("share present" in texts) == ("readings" in texts)  # the reliability diagram and the counts below it
    assert "<title>AU12: " in page  # of a bar, for the pointer


def test_numbers_are_those_of_the_evaluation(page, results, folder):
    texts = Reader(page).texts
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for name, scores in results["formats"].items():
        for metric in ("f1", "roc_auc", *(("icc", "mae") if name != "bp4d" else ())):
            low, high = scores["mean_interval"][metric]
            assert f"{scores['mean'][metric]:.3f}" in texts
            assert f"{low:.3f} to {high:.3f}" in texts
            assert f"| {scores['mean'][metric]:.3f} ({low:.3f} to {high:.3f}) |" in markdown
        for label, of_au in scores["per_au"].items():
            row = [label, of_au["support"], of_au["n"], of_au["unparsed"], f"{of_au['accuracy']:.3f}"]
            pattern = r"<td[^>]*>{}</td><td>{}</td><td>{}</td><td>{}</td>.*<td[^>]*>{}</td>".format(*row)
            assert re.search(pattern, page)
        assert scores["unparsed"] == 1
    assert f"{1 / results['formats']['bp4d']['annotated']:.1%}" in texts


def test_undefined_values_say_why(page, folder):
    assert 'title="no positive label" class="none">\u2013</td>' in page
    assert 'title="one class only" class="none">\u2013</td>' in page
    assert "no positive label (AU24: recall, AP)" in page
    assert "no positive label (AU24: recall, AP)" in (folder / "report.md").read_text(encoding="utf-8")
    assert 'title="over 11 of 12 AUs">' in page


def test_what_comes_from_files_is_escaped(page, folder):
    assert HOSTILE not in page
    assert "<b>mine" not in page
    assert f"made {HOSTILE}, clip 0, frame 0" in Reader(page).texts
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "<b>mine" not in markdown
    assert "&lt;/script&gt; \\| !\\[x\\](http://x), clip 0" in markdown


def test_images_of_the_markdown_exist(folder):
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / "report.md").read_text().replace("\\]", ""))
    shown = [name for name in shown if name != "http://x"]
    assert sorted(shown) == sorted(path.name for path in folder.glob("report_*.png"))
    for name in shown:
        image = Image.open(folder / name)
        assert image.width > 0
        assert "worst" not in name or max(image.size) == 96


def test_markdown_tables_are_rectangular(folder):
    text = (folder / "report.md").read_text(encoding="utf-8").replace("\\|", "")
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = block.splitlines()
        assert len({row.count("|") for row in rows}) == 1
        assert re.fullmatch(r"(\|:?-+:?)+\|", rows[1])


def test_worst_errors_are_wrong_and_sure(folder):
    _, formats = load_evaluation(folder)
    for readings in formats:
        worst = worst_errors(readings)
        assert {(image, 0) for image in range(4)} == set(map(tuple, worst[:4]))
        sure = [readings.confidence[tuple(cell)] for cell in worst]
        assert sure == sorted(sure, reverse=True)
        wrong = readings.rated & (readings.present != readings.truth)
        assert all(wrong[tuple(cell)] for cell in worst)
        assert len(worst) == min(12, wrong.sum())


def test_confidence_is_the_probability_of_what_was_decided(tmp_path):
    rows = predictions(["bp4d"])
    for row in rows:
        row["present"] = [float(p >= 0.2) for p in row["probability"]]
    (readings,) = load_evaluation(write(tmp_path / "eval", rows))[1]
    low = readings.rated & (readings.probability > 0.2) & (readings.probability < 0.5)
    np.testing.assert_array_equal(readings.confidence[low], readings.probability[low])


def test_curves_have_the_areas_of_the_scores(folder):
    for readings in load_evaluation(folder)[1]:
        drawn = {which: curves(readings, which) for which in ("roc", "pr", "risk")}
        labels = readings.fmt.labels
        assert list(drawn["roc"]) == list(drawn["pr"]) == list(labels[:-1])  # the last is never present
        assert list(drawn["risk"]) == list(labels)
        for which, tolerance in (("roc", 0.01), ("pr", 0.01), ("risk", 0.02)):
            for values, area in drawn[which].values():
                assert np.trapezoid(values, GRID) == pytest.approx(area, abs=tolerance)


def test_without_probabilities_their_sections_are_left_out(tmp_path):
    folder = write(tmp_path / "eval", predictions(["bp4d"], probabilities=False), contradictions=None)
    (folder / "report_worst_bp4d_1.png").write_bytes(b"a face of an earlier report")
    page = write_report(folder, face).read_text(encoding="utf-8")
    assert sections_of(page) == ["scores", "bars", "table", "provenance"]
    assert not list(folder.glob("report_worst_*"))


def test_optional_parts_are_shown(tmp_path):
    rows = predictions(["bp4d"])
    tones = ["<i>dark</i>" if row["frame"] % 2 else "light" for row in rows]
    tones[-1] = "other"
    fmt = FORMATS["bp4d"]
    groups = group_audit(rows, fmt, {"skin": tones}, fewest=2, resamples=50)
    audits = {"groups": groups, "abstention": apply_abstention(rows, fmt, {"AU1": 0.77})}
    audits["baselines"] = {"all-zero": {"mean": {"f1": 0.125}}, "neighbour-copy": {"left_out": "no clip"}}
    audits["parse_audit"] = parse_audit([row | {"text": "AU1: 1"} for row in rows], fmt)
    folder = write(tmp_path / "eval", rows, entries={"bp4d": audits})
    page = write_report(folder).read_text(encoding="utf-8")
    assert "worst" not in sections_of(page)
    assert {"baselines", "groups", "parsing", "risk"} <= set(sections_of(page))
    gap = groups["gaps"]["skin"]["f1"]
    shown = [f"{gap['difference']:.3f}", "{:.3f} to {:.3f}".format(*gap["interval"]), f"{gap['p_holm']:.3f}"]
    shown += [
        "all-zero",
        "0.125",
        "neighbour-copy left out: no clip (bp4d)",
        "bp4d, by skin",
        "<i>dark</i>",
        "Not scored for too few subjects: other (1).",
    ]
    shown += ["0.770", f"{audits['abstention']['per_au']['AU1']['coverage']:.3f}"]
    shown += ["verbatim_rate", "denied_in_words: cells", "scores: strict: absent: mean: f1", "lenient: AU1"]
    assert set(shown) <= set(Reader(page).texts)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    names = ["&lt;i&gt;dark&lt;/i&gt;", "light"][:: 1 if gap["groups"][1] == "light" else -1]
    assert f"| F1 | {shown[0]} ({shown[1]}) | {' | '.join(names)} | {shown[2]} |" in markdown


def test_decision_thresholds_are_those_of_the_predictions(page):
    rows = predictions(["bp4d"])
    read = [(row["probability"][0], row["present"][0]) for row in rows]
    below, above = max(p for p, present in read if not present), min(p for p, present in read if present)
    assert f"<td>AU1</td><td>{below:.3f}</td><td>{above:.3f}</td>" in page


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.json in .*nowhere; eval_au\.py --out writes it\.$"):
        write_report(tmp_path / "nowhere")
    rows = predictions(["bp4d"])
    folder = write(tmp_path / "eval", rows)
    (folder / "predictions.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no predictions\.parquet"):
        write_report(folder)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("results.json", b"{", "Expecting property name"),
        ("results.json", b"[]", "scores no format"),
        ("results.json", b'{"formats": {"bp5d": {}}}', "unknown format 'bp5d'"),
        ("results.json", b'{"formats": {"bp4d": {}}}', "no 'n'"),
        ("results.json", b'{"formats": {"bp4d": {"n": 3, "per_au": {}}}}', "same images and AUs of bp4d"),
        ("predictions.parquet", b"no parquet", "[Pp]arquet"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, file, content, reason):
    folder = write(tmp_path / "eval", predictions(["bp4d"]))
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"eval does not hold what eval_au\.py writes: .*{reason}.*\.$"):
        write_report(folder)


def test_predictions_of_another_shape_are_refused(tmp_path):
    folder, rows = tmp_path / "eval", predictions(["bp4d"])
    write(folder, rows)
    short = [row | {"present": row["present"][:5]} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(short), folder / "predictions.parquet")
    with pytest.raises(ValueError, match="do not have 12 AUs"):
        write_report(folder)
    pyarrow.parquet.write_table(pyarrow.table({"format": ["bp4d"] * IMAGES}), folder / "predictions.parquet")
    with pytest.raises(ValueError, match=r"predictions\.parquet lacks clip, dataset"):
        write_report(folder)
