"""Evidence: maps where the truth is known, reasons in words, and the pointing game."""

import json

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, TOWERS, build_tiny, load_tool
from PIL import Image

from au_llava.action_units import FORMATS
from au_llava.au_recognition.evidence import BLUR, evidence_maps, falls_when_hidden, peak
from au_llava.au_recognition.outputs import add_reasons
from au_llava.au_recognition.reasons import explain, reason
from au_llava.au_recognition.runner import reading_of
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import draw_values
from au_llava.au_rendering.rig import load_rig
from au_llava.au_rendering.view import View

pointing = load_tool("pointing")
BP4D, DISFA, FEAFA = FORMATS["bp4d"], FORMATS["disfa"], FORMATS["feafa"]


@pytest.fixture(scope="module")
def image():
    """Smooth noise whose every channel has the mean 100 exactly, so that hiding can be repeated in whole numbers."""
    half = np.random.default_rng(0).integers(-90, 90, (2, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return Image.fromarray((100 + np.concatenate([half, -half])).astype(np.uint8))


def map_with_peak(row, column):
    evidence = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    evidence[row, column] = 1
    return evidence


@pytest.mark.parametrize(("tower", "mirror"), [("siglip", False), ("resnet", True)])
def test_falls_are_those_of_recognize(image, tower, mirror):
    """Of the image with the part above half of the map painted over, calibration included."""
    model, processor = build_tiny(vision_config=TOWERS[tower][0], mirror_images=mirror)
    entry = {"method": "temperature", "temperature": 2.0, "threshold": 0.4}
    model.config.calibration = {
        "formats": {"disfa": {"scale": "intensity", "presence_threshold": 2.0, "aus": {"AU12": entry}}}
    }
    maps = np.random.default_rng(1).random((15, 4, 4)).repeat(8, axis=1).repeat(8, axis=2)
    wanted = {BP4D: BP4D.labels, FEAFA: ("AU12L", "AU9"), DISFA: ("AU12",)}
    of_format = {"bp4d": maps[:12], "feafa": maps[12:14], "disfa": maps[14:]}
    falls = falls_when_hidden(model, processor, image, wanted, of_format)
    painted = [Image.fromarray(np.where(evidence[..., None] > 0.5, np.uint8(100), image)) for evidence in maps]
    whole, *hidden = model.recognize(processor, [image, *painted])
    asked = [(fmt.name, label) for fmt, labels in wanted.items() for label in labels]
    expected = [
        whole[name][label].probability - other[name][label].probability
        for (name, label), other in zip(asked, hidden, strict=True)
    ]
    np.testing.assert_allclose([*falls["bp4d"], *falls["feafa"], *falls["disfa"]], expected, atol=2e-6)
    assert min(expected) < -5e-5 < 5e-5 < max(expected)


def test_the_one_patch_that_counts_is_found(image):
    """A tower whose patches do not see each other, and a projector that lets one of the 4 x 4 through."""
    model, processor = build_tiny(vision_config=TOWERS["siglip"][0])
    with torch.no_grad():
        for layer in model.model.vision_tower.encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()
    rows, columns = slice(16, 24), slice(24, 32)
    let_through = (torch.arange(16) == 4 * 2 + 3)[:, None]
    model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: output * let_through)
    (maps,) = evidence_maps(model, processor, image, {BP4D: BP4D.labels}).values()
    assert maps.shape == (12, IMAGE_SIZE, IMAGE_SIZE)
    reach = round(4 * BLUR * IMAGE_SIZE)  # of the blur
    around = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    around[rows.start - reach : rows.stop + reach, columns.start - reach :] = True
    for evidence in maps:
        assert evidence[rows, columns].max() == evidence.max() == 1
        assert (evidence[rows, columns] > 0.01).all()
        assert (evidence[~around] == 0).all()
        assert evidence.min() == 0


@pytest.mark.parametrize("tower", ["resnet", "dinov3"])
def test_formats_do_not_matter(image, tower):
    model = build_tiny(vision_config=TOWERS[tower][0])
    wanted = {BP4D: ["AU4", "AU12"], DISFA: ["AU26"]}
    together = evidence_maps(*model, image, wanted)
    for fmt, labels in wanted.items():
        for number, label in enumerate(labels):
            alone = evidence_maps(*model, image, {fmt: [label]})
            np.testing.assert_allclose(alone[fmt.name][0], together[fmt.name][number], atol=2e-5)
    assert np.abs(together["bp4d"][0] - together["bp4d"][1]).max() > 2e-4  # of a random model, whose AUs are much alike
    assert all(parameter.grad is None for parameter in model[0].parameters())


def test_a_face_that_makes_no_difference_gives_no_evidence(image):
    model, processor = build_tiny()
    model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: 0 * output)
    assert not evidence_maps(model, processor, image, {BP4D: ["AU4"]})["bp4d"].any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({BP4D: ["AU99"]}, "format bp4d has no 'AU99': choose from AU1, AU2"),
        ({BP4D: [], DISFA: []}, "no AU to explain"),
    ],
)
def test_bad_labels_are_refused(tiny, image, labels, message):
    with pytest.raises(ValueError, match=message):
        evidence_maps(*tiny, image, labels)


def test_peak_is_the_middle_of_the_highest_pixel():
    assert peak(map_with_peak(2, 5)) == (5.5 / IMAGE_SIZE, 2.5 / IMAGE_SIZE)


def test_reasons_hold_the_definition_and_the_numbers():
    calibration = {
        "formats": {
            "disfa": {"scale": "intensity", "presence_threshold": 2.0, "aus": {"AU12": {"threshold": 0.406}}},
            "feafa": {"scale": "intensity", "presence_threshold": 2.0, "aus": {"AU43L": {"threshold": 0.9}}},
        }
    }
    evidence = map_with_peak(30, 2)
    evidence[24:, :8] += 0.6  # 64 of 1024 pixels, the peak among them
    evidence[:, 16:] += 0.4
    assert reason(DISFA, "AU12", 0.9342, 2.7812, evidence, 0.312, calibration) == (
        "AU12 (lip corner puller): the lip corners are pulled up and outward. Read as present: probability 0.93, "
        "threshold 0.41; mean 2.8 of 5. The evidence peaks in the lower left of the crop; hiding the outlined 6 % "
        "of the crop lowers the probability by 0.31."
    )
    # A calibration of another scale is not for this format.
    assert reason(FEAFA, "AU43L", 0.7, 0.618, map_with_peak(16, 16), 0.05, calibration) == (
        "AU43L (left eye closure): the left eye is closed. Read as present: probability 0.70, threshold 0.50; mean "
        "0.62 of 1. The evidence peaks in the middle of the crop; hiding the outlined 0 % of the crop lowers the "
        "probability by 0.05."
    )
    assert reason(BP4D, "AU1", 1.0, 1.0, map_with_peak(5, 31), -0.2) == (
        "AU1 (inner brow raiser): the inner brow ends are pulled up. Read as present: probability 1.00, threshold "
        "0.50. The evidence peaks in the upper right of the crop; hiding the outlined 0 % of the crop does not lower "
        "the probability by 0.01 or more."
    )
    assert reason(BP4D, "AU1", 1.0, 1.0, 0 * evidence, 0.0).endswith("0.50. It does not depend on the crop.")


def test_every_au_found_is_explained(tiny, image):
    model, processor = tiny
    answers = reading_of(model.recognize(processor, image, [BP4D, DISFA])[0])["answers"]
    explained = explain(model, processor, image, answers, [BP4D, DISFA])
    present = [
        (fmt, label, probability)
        for fmt in (BP4D, DISFA)
        for label, there, probability in zip(
            fmt.labels, answers[fmt.name]["present"], answers[fmt.name]["probability"], strict=True
        )
        if there
    ]
    assert present
    assert [explanation[:3] for explanation in explained] == present
    for explanation in explained:
        assert explanation.evidence.shape == (IMAGE_SIZE, IMAGE_SIZE)
    add_reasons({"answers": answers}, explained)
    reasons = [reason for fmt in (BP4D, DISFA) for reason in answers[fmt.name].get("reason", ())]
    assert list(filter(None, reasons)) == [explanation.reason for explanation in explained]
    nothing = {"bp4d": {"present": [False] * 12}}
    assert explain(model, processor, image, nothing, [BP4D]) == []


# The pointing game


def test_values_are_drawn_where_the_face_is():
    """Beside the renderer's own landmarks, under a turned head."""
    rig, subject, size = load_rig(), sample_subject(1, 4), 96
    strengths = {"AU26": 0.8, "AU4L": 0.5}
    view = View(yaw=25, pitch=-10, roll=8, shift=(0.05, -0.03), scale=1.1, distance=7.0, gaze=(0.3, 0.2))
    _, (landmarks, _) = picture(subject, strengths, view, size, np.random.default_rng(0))
    forward = rig.landmarks[40]  # the most forward vertex of the face: the tip of the nose
    near = np.linalg.norm(rig.mean - rig.mean[forward], axis=1) < 0.1
    drawn = draw_values(near.astype(float), subject.identity, subject.movement(strengths), view, size)
    y, x = np.indices(drawn.shape) + 0.5
    middle = np.array([(x * drawn).sum(), (y * drawn).sum()]) / drawn.sum()
    assert np.abs(middle - size * landmarks[40]).max() < 1.5
    assert drawn.max() == 1
    assert drawn[0, 0] == 0


def test_regions_follow_side_strength_and_pose():
    subject = sample_subject(1, 4)
    middle = lambda truth: np.argwhere(truth).mean(axis=0)  # (down, right) in pixels
    both = {"AU12L": 0.8, "AU12R": 0.8}
    left = pointing.region(subject, both, View(), "AU12L")
    assert middle(left)[1] > 50 > 46 > middle(pointing.region(subject, both, View(), "AU12R"))[1]
    assert (pointing.region(subject, {"AU12L": 0.8}, View(), "AU12") ^ left).sum() < 0.05 * left.sum()
    higher = pointing.region(subject, both, View(shift=(0.0, -0.1)), "AU12L")
    assert middle(left)[0] - middle(higher)[0] == pytest.approx(9.6, abs=1)
    assert middle(pointing.region(subject, {"AU1": 1.0}, View(), "AU1"))[0] < 40 < middle(left)[0]


def test_pointed_by_hand():
    upper, lower = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    upper[:2], lower[3] = True, True
    points = {"AU1": (0.9, 0.1), "AU12L": (0.1, 0.9), "AU12R": (0.9, 0.4)}
    rows = list(pointing.pointed(points, {"AU1": upper, "AU12L": lower, "AU12R": lower}))
    assert rows == [
        {"label": "AU1", "hits": 1.0, "chance": 0.5, "others": 0.5},
        {"label": "AU12L", "hits": 1.0, "chance": 0.25, "others": 0.0},  # AU12R is no other AU
        {"label": "AU12R", "hits": 0.0, "chance": 0.25, "others": 0.0},
    ]
    (alone,) = pointing.pointed({"AU1": (0.9, 0.9)}, {"AU1": upper})
    assert alone["hits"] == 0
    assert np.isnan(alone["others"])


def test_summary_by_hand():
    def row(subject, label, hits, chance, others):
        return {
            "subject": subject,
            "format": "bp4d",
            "label": label,
            "hits": hits,
            "chance": chance,
            "others": others,
        }

    rows = [
        row("A", "AU1", 1.0, 0.1, 0.5),
        row("A", "AU1", 1.0, 0.3, float("nan")),
        row("B", "AU1", 0.0, 0.2, 0.1),
        row("B", "AU4", 1.0, 0.4, 0.2),
    ]
    found = pointing.summarize(rows, [BP4D])["bp4d"]
    first, second = found["per_au"]["AU1"], found["per_au"]["AU4"]
    assert [first[key] for key in ("n", "hits", "chance", "others")] == pytest.approx([3, 2 / 3, 0.2, 0.3])
    assert first["interval"] == [0.0, 1.0]  # only B or only A is drawn in a quarter of the resamples each
    assert [second[key] for key in ("n", "hits", "chance", "others")] == pytest.approx([1, 1, 0.4, 0.2])
    assert second["interval"] == [1.0, 1.0]
    assert [found["mean"][key] for key in ("n", "hits", "chance", "others")] == pytest.approx([4, 5 / 6, 0.3, 0.25])
    assert found["mean"]["interval"] == [0.5, 1.0]  # 0 and 1 where only B is drawn, AU1 alone where only A is
    assert np.isnan(found["per_au"]["AU2"]["hits"])


def test_pointing_runs(tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "pointing.json"
    assert pointing.run(["--model", str(tiny_checkpoint), "--people", "3", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["provenance"]["checkpoint"]["weights_sha256"]["model.safetensors"]
    assert written["provenance"]["faces"] == {"seed": 1, "first": 100, "people": 3, "images": 1, "size": 96}
    assert set(written["formats"]) == {"bp4d", "disfa", "feafa"}
    assert sum(scores["mean"]["n"] for scores in written["formats"].values()) > 0
    assert all(0 <= scores["mean"]["chance"] <= 1 for scores in written["formats"].values() if scores["mean"]["n"])
    assert "other AUs" in capsys.readouterr().out


def test_pointing_refuses_a_folder_without_a_checkpoint(tmp_path, capsys):
    assert pointing.run(["--model", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().err.startswith("pointing.py: ")
