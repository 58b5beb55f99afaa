"""Rendered faces: each AU moves the mesh the right way, shows in the picture and carries the right labels."""

import math
from functools import cache

import numpy as np
import pytest

from au_llava.action_units import FORMATS, AUFormat
from au_llava.au_readers.rendered import sample_records
from au_llava.au_rendering.activations import (
    EXCLUDES,
    GAZE,
    NAMES,
    SHARE,
    label_values,
    on_request,
    sample_activations,
    with_gaze,
)
from au_llava.au_rendering.appearance import RestLines
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture, render_face
from au_llava.au_rendering.render import head_rotation
from au_llava.au_rendering.rig import ON_REQUEST, SHAPES, expand_sides, load_rig
from au_llava.au_rendering.view import HELD_OUT, View, sample_view
from au_llava.au_rendering.wrinkles import wrinkles

RIG = load_rig()
SMOOTH = RestLines(forehead=0, frown=0, eyes=0, bags=0, nose=0, mouth=0, spacing=8, phase=0)
X, Y, Z = RIG.mean.T
SKIN = np.isin(np.arange(len(X)), RIG.vertices_of("skin"))
INNER_LIPS = np.intersect1d(RIG.vertices_of("skin"), RIG.vertices_of("mouth"))

# Patches of the mean face, in eye distances; the subject's left is at positive x.
PATCHES = {
    "inner brows": SKIN & (np.abs(X) < 0.30) & (Y > 0.20) & (Y < 0.45) & (Z > 0),
    "left outer brow": SKIN & (X > 0.65) & (X < 0.95) & (Y > 0.15) & (Y < 0.40) & (Z > -0.4),
    "left brow": SKIN & (X > 0.2) & (X < 0.8) & (Y > 0.2) & (Y < 0.45) & (Z > -0.4),
    "left upper lid": (RIG.lids > 0.9) & (X > 0.4) & (X < 0.6) & (Y > 0.03),
    "left lower lid": (RIG.lids > 0.9) & (X > 0.4) & (X < 0.6) & (Y < -0.03),
    "left cheek": SKIN & (X > 0.6) & (X < 1.0) & (Y > -0.9) & (Y < -0.5) & (Z > -0.5),
    "left lip corner": np.isin(np.arange(len(X)), INNER_LIPS[X[INNER_LIPS] > 0.33]),
    "upper lip": (RIG.lips > 0.9) & (np.abs(X) < 0.15) & (Y > -1.10),
    "lower lip": (RIG.lips > 0.9) & (np.abs(X) < 0.15) & (Y < -1.17) & (Z > 0.25),
    "chin": SKIN & (np.abs(X) < 0.15) & (Y < -1.5) & (Y > -1.8) & (Z > 0),
    "chin boss": SKIN & (np.abs(X) < 0.15) & (Y < -1.3) & (Y > -1.5) & (Z > 0),
    "root of the nose": SKIN & (np.abs(X) < 0.2) & (Y > 0.15) & (Y < 0.3) & (Z > 0),
    "tongue": np.isin(np.arange(len(X)), RIG.vertices_of("tongue")),
    "left side cheek": SKIN & (X > 0.5) & (X < 0.9) & (Y < -0.9) & (Y > -1.3) & (Z > -0.6),
}
AXES = {"left": (0, 1), "right": (0, -1), "up": (1, 1), "down": (1, -1), "forward": (2, 1), "back": (2, -1)}


@pytest.mark.parametrize(
    ("label", "patch", "direction"),
    [
        ("AU1", "inner brows", "up"),
        ("AU2L", "left outer brow", "up"),
        ("AU4L", "left brow", "down"),
        ("AU4L", "left brow", "right"),  # towards the middle
        ("AU5L", "left upper lid", "up"),
        ("AU6L", "left cheek", "up"),
        ("AU7L", "left lower lid", "up"),
        ("AU9", "root of the nose", "down"),
        ("AU10", "upper lip", "up"),
        ("AU12L", "left lip corner", "up"),
        ("AU12L", "left lip corner", "left"),
        ("AU14L", "left lip corner", "left"),
        ("AU14L", "left lip corner", "back"),
        ("AU15L", "left lip corner", "down"),
        ("AU16", "lower lip", "down"),
        ("AU17", "lower lip", "up"),
        ("AU18", "upper lip", "forward"),
        ("AU20L", "left lip corner", "left"),
        ("AU23", "left lip corner", "right"),
        ("AU24", "upper lip", "back"),
        ("AU25", "lower lip", "down"),
        ("AU26", "chin", "down"),
        ("AU28T", "upper lip", "back"),
        ("AU28B", "lower lip", "up"),
        ("AD29", "chin", "forward"),
        ("AD30L", "chin", "left"),
        ("AD30R", "chin", "right"),
        ("AD34", "left side cheek", "forward"),
        ("AU43L", "left upper lid", "down"),
        ("AU22", "upper lip", "forward"),
        ("AU22", "left lip corner", "right"),
        ("AU8", "lower lip", "up"),
        ("AD19", "tongue", "forward"),
        ("AD101L", "upper lip", "left"),
        ("AD101L", "lower lip", "left"),
        ("AD101R", "left lip corner", "right"),
        ("AD102", "upper lip", "up"),
    ],
)
def test_au_moves_the_mesh_the_right_way(label, patch, direction):
    assert PATCHES[patch].any()
    moved = RIG.offsets({label: 1.0})[PATCHES[patch]].mean(axis=0)
    axis, sign = AXES[direction]
    assert sign * moved[axis] > 0.008  # half a millimetre


def test_pressed_lips_lose_their_red_and_tight_ones_their_width():
    """FACS: AU24 presses the lips until little red is left, AU23 narrows the mouth and rolls the lips in."""
    red, width = (RIG.lips > 0.5) & (np.abs(X) < 0.1), INNER_LIPS
    tight, pressed = (RIG.mean + RIG.offsets({label: 1.0}) for label in ("AU23", "AU24"))
    assert np.ptp(pressed[red, 1]) < 0.25 * np.ptp(RIG.mean[red, 1])
    assert 0.5 < np.ptp(tight[red, 1]) / np.ptp(RIG.mean[red, 1]) < 0.75
    assert np.ptp(tight[width, 0]) < 0.75 * np.ptp(RIG.mean[width, 0])
    assert np.ptp(pressed[width, 0]) > 0.95 * np.ptp(RIG.mean[width, 0])


def test_lips_meet_over_an_open_jaw_and_part_in_a_funnel():
    """FACS: AU8 brings the lips together over an open jaw; AU22 funnels them outward, so that the teeth show."""

    def gap(**strengths):
        return RIG.lip_gap(RIG.mean + RIG.offsets(strengths))

    chin = PATCHES["chin"]
    for strength in (0.3, 1.0):
        both = {"AU8": strength, "AU26": strength}
        assert gap(**both) == pytest.approx(gap(), abs=0.01)  # eye distances: half a millimetre
        np.testing.assert_allclose(
            RIG.offsets(both)[chin].mean(axis=0), RIG.offsets({"AU26": strength})[chin].mean(axis=0), atol=0.06
        )
    assert gap(AU22=1.0) > gap() + 0.1


def test_a_shrugged_upper_lip_rests_on_the_lower_one():
    """The upper lip alone would open the mouth; with an equal AU17 the lips move up together."""
    for strength in (0.3, 1.0):
        both = {"AD102": strength, "AU17": strength}
        opened = RIG.lip_gap(RIG.mean + RIG.offsets({"AD102": strength}))
        assert opened > RIG.lip_gap(RIG.mean) + 0.05 * strength
        assert RIG.lip_gap(RIG.mean + RIG.offsets(both)) < RIG.lip_gap(RIG.mean) + 0.01


def test_furrows_tell_tight_from_pressed_lips():
    """AU23 draws lines that cross the rims of the lips, AU24 one furrow behind each bulge along them."""
    x = np.linspace(-0.3, 0.3, 121, dtype=np.float32)

    def along(y, label):
        return wrinkles(x, np.full_like(x, y), np.full_like(x, 0.5), {label: 1.0}, SMOOTH)

    def lines(darkening):
        return ((np.diff(darkening)[:-1] > 0) & (np.diff(darkening)[1:] <= 0)).sum()

    for rim, bulge in ((-0.93, -0.97), (-1.33, -1.30)):
        assert lines(along(rim, "AU23")) >= 7
        assert lines(along(bulge, "AU24")) == 1
        assert along(bulge, "AU24")[60] > 3 * along(rim, "AU24")[60]
    for side in (-1, 1):  # AU24 furrows the corners too
        corner, inside = (
            wrinkles(*np.float32([[at], [-1.12], [0.5]]), {"AU24": 1.0}, SMOOTH) for at in (0.40 * side, 0.25 * side)
        )
        assert corner > 0.4 > 0.1 > inside


DIRECTIONS = ("AD30L", "AD30R", "AD101L", "AD101R")  # to a side, not of a side


@pytest.mark.parametrize("label", sorted(label for label in SHAPES if label.endswith("L")))
def test_sided_au_moves_its_own_side(label):
    movement = np.linalg.norm(RIG.offsets({label: 1.0}), axis=1)
    if label in DIRECTIONS:
        assert RIG.offsets({label: 1.0})[PATCHES["chin" if label == "AD30L" else "lower lip"], 0].mean() > 0
        return
    left, right = movement[SKIN & (X > 0.1)].sum(), movement[SKIN & (X < -0.1)].sum()
    assert left > 10 * right


def _gray(values, subject, **options):
    return render_face(values, subject=subject, **options).astype(float).mean(axis=2)


@cache
def _rest_and_noise(subject):
    """A face at rest, and by how much sensor noise changes it."""
    rest = _gray({}, subject)
    return rest, np.abs(_gray({}, subject, view=View(noise=4.0)) - rest)


@pytest.mark.parametrize("label", sorted({label if label in DIRECTIONS else label.rstrip("LR") for label in SHAPES}))
def test_au_shows_at_intensity_three(label):
    """The most changed block of 8 x 8 pixels changes more than sensor noise changes any."""
    for subject in (3, 12):
        rest, noise = _rest_and_noise(subject)
        if label == "AD19":  # behind closed lips it shows nothing
            rest, change = _gray({"AU25": 0.4}, subject), _gray({label: 0.6, "AU25": 0.4}, subject)
            change = np.abs(change - rest)
        else:
            change = np.abs(_gray({label: 0.6}, subject) - rest)
        blocks, noise_blocks = (each.reshape(12, 8, 12, 8).mean(axis=(1, 3)) for each in (change, noise))
        assert blocks.max() > 1.5 * noise_blocks.max()


@pytest.mark.parametrize(("label", "rows"), [("AU43", (20, 50)), ("AU12", (55, 90)), ("AU2", (0, 40))])
def test_left_of_the_subject_is_right_in_the_picture(label, rows):
    matte = View(shading="matte")  # gloss wanders over the whole lip
    rest = _gray({}, 3, view=matte)
    for letter, own, other in (("L", slice(48, 96), slice(0, 48)), ("R", slice(0, 48), slice(48, 96))):
        change = np.abs(_gray({label + letter: 1.0}, 3, view=matte) - rest)[slice(*rows)]
        assert change[:, own].sum() > 2 * change[:, other].sum()


def test_head_turns_to_the_subjects_own_left():
    """The nose, the point nearest to the camera, moves to the picture's right."""
    nose = np.array([0.0, 0.0, 1.0])
    assert (nose @ head_rotation(20, 0))[0] > 0.3
    assert (nose @ head_rotation(0, 20))[1] > 0.3


def test_lips_are_equally_closed_on_every_identity():
    gaps = [RIG.lip_gap(sample_subject(5, number).identity) for number in range(6)]
    np.testing.assert_allclose(gaps, RIG.lip_gap(RIG.mean), atol=1e-4)


def test_labels_of_all_formats():
    strengths = {"AU12L": 0.30, "AU12R": 0.20, "AU2R": 0.5, "AU28T": 0.4, "AU1": 1.0}
    feafa = dict(zip(FORMATS["feafa"].labels, label_values(strengths, "feafa"), strict=True))
    assert {label: value for label, value in feafa.items() if value} == {
        "AU12L": 0.30,
        "AU12R": 0.20,
        "AU2R": 0.5,
        "AU28T": 0.4,
    }
    disfa = dict(zip(FORMATS["disfa"].labels, label_values(strengths, "disfa"), strict=True))
    assert {label: value for label, value in disfa.items() if value} == {"AU1": 5, "AU2": 3, "AU12": 2}
    bp4d = dict(zip(FORMATS["bp4d"].labels, label_values(strengths, "bp4d"), strict=True))
    assert {label for label, value in bp4d.items() if value == 1} == {"AU1", "AU2", "AU12"}


@pytest.mark.parametrize(
    ("strength", "intensity"), [(0.2, 1), (0.29, 1), (0.3, 2), (0.49, 2), (0.5, 3), (0.7, 4), (0.9, 5)]
)
def test_intensity_rounds_half_up(strength, intensity):
    assert label_values({"AU9": strength}, "disfa")[FORMATS["disfa"].labels.index("AU9")] == intensity


def test_labels_of_any_format(monkeypatch):
    """A whole AU from its sides, a side from the whole, unknown what the rig cannot show."""
    monkeypatch.setitem(FORMATS, "mine", AUFormat("mine", ("AU28", "AU9L", "AU12", "AU64", "AU38"), "intensity"))
    values = label_values({"AU28B": 0.4, "AU9": 0.2, "AU12R": 1.0}, "mine")
    assert values[:3] == [2, 1, 5]
    assert np.isnan(values[3:]).all()


def test_sampled_activations_are_possible_and_varied():
    rng = np.random.default_rng(0)
    draws = [sample_activations(rng) for _ in range(4000)]
    seen = dict.fromkeys(NAMES, 0)
    for strengths in draws:
        assert all(
            0.2 <= value <= 1 and round(value * 100) == pytest.approx(value * 100) for value in strengths.values()
        )
        names = {label if label in NAMES else label[:-1] for label in strengths}
        for name in names:
            seen[name] += 1
            assert not EXCLUDES[name] & names
        assert not {"AD30L", "AD30R"} <= strengths.keys()
        parting = [strengths[name] for name in ("AU10", "AU16", "AU26") if name in strengths]
        assert strengths.get("AU25", 0) >= max(parting, default=0)
    assert min(seen.values()) > 0.04 * len(draws)
    assert 0.18 < np.mean([count / len(draws) for count in seen.values()]) < 0.30
    sizes = [len(strengths) for strengths in draws]
    assert sizes.count(0) > 100
    one_sided = sum(("AU12L" in strengths) != ("AU12R" in strengths) for strengths in draws)
    assert 0.1 < one_sided / seen["AU12"] < 0.4


ANIMATION = (*ON_REQUEST, *GAZE)


def test_nothing_changes_for_labels_that_ask_for_nothing():
    usual = {label for fmt in FORMATS.values() for label in fmt.labels}
    rng = np.random.default_rng(1)
    for _ in range(50):
        strengths, view = sample_activations(rng), sample_view(rng)
        assert on_request(strengths, view, usual, np.random.default_rng(0)) == (strengths, view)


def test_people_and_pictures_are_those_of_before():
    """Numbers of commit 6e8d8a0, before there were movements on request."""
    subject = sample_subject(4, 7)
    assert subject.gains["AU12L"] == pytest.approx(1.0174165999745972, abs=1e-12)
    assert subject.gains["AD34"] == pytest.approx(1.116249051793701, abs=1e-12)
    assert float(subject.manner.sum()) == pytest.approx(4712.275390625, rel=1e-6)
    drawn = {"AD34": 0.42, "AU1": 0.55, "AU2L": 0.98, "AU2R": 0.41, "AU23": 0.29, "AU4L": 0.51, "AU4R": 0.48}
    assert sample_activations(np.random.default_rng(5)) == drawn


def test_movements_on_request_leave_room_for_themselves():
    rng = np.random.default_rng(2)
    seen, looks = dict.fromkeys(ON_REQUEST, 0), []
    for _ in range(3000):
        before, view = sample_activations(rng), View()
        strengths, view = on_request(before, view, ANIMATION, rng)
        drawn = [name for name in ON_REQUEST if name in strengths]
        looks.append(view.gaze)
        if not drawn:
            assert strengths == before
            continue
        [name] = drawn
        seen[name] += 1
        assert 0.2 <= strengths[name] <= 1
        names = {label.rstrip("LR") for label in strengths}
        assert not names & {"AU18", "AU28T", "AU28B"}
        if name in ("AD101L", "AD101R"):
            assert "AD30" not in names
            assert {label for label in before if label.rstrip("LR") in names} <= strengths.keys()
            continue
        assert not names & {"AU23", "AU24", "AD34"}
        if name == "AD102":
            assert strengths["AU17"] == max(strengths["AD102"], before.get("AU17", 0))
            assert not names & {"AU10", "AU16", "AU25", "AU26"}
            continue
        assert "AU17" not in names
        if name == "AU8":
            assert strengths["AU26"] == strengths["AU8"]
            assert not names & {"AU10", "AU16", "AU25"}
        elif name == "AU22":
            assert strengths["AU25"] >= strengths["AU22"]
            assert not names & {"AU12", "AU14", "AU15", "AU20"}
        else:
            assert strengths["AU25"] >= max(0.3, before.get("AU25", 0))
    sideways = [seen.pop("AD101L"), seen.pop("AD101R")]
    assert all(abs(count / 3000 - SHARE) < 0.02 for count in (*seen.values(), sum(sideways)))
    assert min(sideways) > 0.4 * sum(sideways)
    looks = np.abs(looks)
    assert looks.max() <= 1
    assert 0.25 < (looks.max(axis=1) < 0.25).mean() < 0.55  # about straight ahead


def test_only_what_is_asked_for_is_drawn():
    rng = np.random.default_rng(3)
    for _ in range(200):
        strengths, view = on_request({}, View(), ["AU22B"], rng)
        assert set(strengths) <= {"AU22", "AU25"}
        assert view.gaze == (0, 0)
        strengths, _ = on_request({}, View(), ["AU63"], rng)
        assert strengths == {}
        strengths, _ = on_request({}, View(), ["AD101R"], rng)
        assert set(strengths) <= {"AD101R"}


def test_labels_of_the_gaze(monkeypatch):
    """To the person's left and down; unknown where nobody says so, and behind shut lids."""
    monkeypatch.setitem(FORMATS, "eyes", AUFormat("eyes", (*GAZE, "AU43"), "continuous"))
    assert label_values(with_gaze({}, (0.5, -0.25)), "eyes") == [0.5, 0, 0, 0.25, 0]
    wink, shut = {"AU43L": 1.0}, {"AU43L": 0.7, "AU43R": 0.6}
    assert label_values(with_gaze(wink, (-1.0, 0.0)), "eyes") == [0, 1, 0, 0, 1]
    for strengths in (with_gaze(shut, (0.5, 0.5)), shut):
        values = label_values(strengths, "eyes")
        assert all(map(math.isnan, values[:4]))
        assert values[4] == 0.7


@pytest.mark.parametrize(("gaze", "axis"), [((0.8, 0), 1), ((0, -0.8), 0)])
def test_eyes_turn_as_the_labels_say(gaze, axis):
    """The dark iris of the subject's left eye, looking to opposite sides; their left is the picture's right."""

    def iris(view):
        eye = _gray({"AU5": 1.0}, 3, size=192, view=view)[60:88, 110:150]
        return np.argwhere(eye < np.percentile(eye, 12)).mean(axis=0)

    opposite = tuple(-way for way in gaze)
    moved = iris(View(gaze=gaze, shading="matte")) - iris(View(gaze=opposite, shading="matte"))
    assert moved[axis] > 2  # pixels


def test_records_in_a_format_for_animators(monkeypatch):
    """They show and label what the format asks for; the same pictures in other formats do not."""
    monkeypatch.setitem(FORMATS, "mine", AUFormat("mine", (*ANIMATION, "AU12L"), "continuous"))
    usual = sample_records(3, 8, 6, 48, formats=["feafa"])
    asked = sample_records(3, 8, 6, 48, formats=["feafa", "mine"])
    values = np.array([row["values"] for row in asked[1::2]])
    assert values.shape == (6, len(ANIMATION) + 1)
    assert np.nanmax(values[:, len(ON_REQUEST) : -1]) > 0.25
    assert all(one["image"] != two["image"] for one, two in zip(usual, asked[::2], strict=True))
    smiles = FORMATS["feafa"].labels.index("AU12L")
    assert [row["values"][smiles] for row in asked[::2]] == values[:, -1].tolist()
    assert all(one["image"] == two["image"] for one, two in zip(asked[::2], asked[1::2], strict=True))


def test_excludes_are_mutual():
    assert all(name in EXCLUDES[other] for name in NAMES for other in EXCLUDES[name])


def test_render_face_is_deterministic_and_sized():
    first, again = (render_face({"AU12": 0.8}, subject=4, size=64) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, render_face({"AU12": 0.8}, subject=5, size=64))


def test_expand_sides():
    assert expand_sides({"AU12": 0.5, "AU28T": 0.3}) == {"AU12L": 0.5, "AU12R": 0.5, "AU28T": 0.3}
    assert expand_sides({"AU2": 1.0}).keys() == {"AU2L", "AU2R"}
    with pytest.raises(ValueError, match="no movement for 'AU99'"):
        expand_sides({"AU99": 0.5})
    with pytest.raises(ValueError, match="AU12 must lie in"):
        expand_sides({"AU12": 1.5})


def test_age_and_gender_shape_the_head():
    """A subject's known values must be visible in the mesh: MakeHuman's men have the heavier jaw."""
    expected = [RIG.identity(RIG.phenotype_map @ np.array([1, 0.3, gender, 0.3 * gender])) for gender in (0.0, 1.0)]
    jaw = SKIN & (Y < -1.3) & (Y > -1.7) & (Z > -0.8)
    widths = [np.ptp(head[jaw, 0]) for head in expected]
    assert widths[0] > widths[1]


def test_landmarks_lie_on_what_they_mark():
    """Lips open under AU25 and AU26, lids meet under AU43, and at rest the landmarks are those of the face at rest."""
    rig, subject = RIG, sample_subject(1, 4)
    rest, opened, shut = (
        picture(subject, expand_sides(values), View(), 96, np.random.default_rng(0))[1]
        for values in ({}, {"AU25": 0.8, "AU26": 1.0}, {"AU43": 1.0})
    )
    assert rest.shape == (2, 64, 2)
    np.testing.assert_allclose(rest[0], rest[1], atol=1e-3)
    np.testing.assert_allclose(opened[1], rest[1], atol=1e-6)  # eyes do not move, so neither does the crop
    x, y, _ = rig.mean[rig.landmarks].T
    lower_lip, upper_lid = rig.landmarks[:24][y[:24].argmin()], (rig.lids[rig.landmarks] > 0.5) & (y > 0.05)
    marked = list(rig.landmarks).index(lower_lip)
    assert opened[0, marked, 1] - rest[0, marked, 1] > 0.05  # crop widths downwards
    assert (shut[0, upper_lid, 1] - rest[0, upper_lid, 1]).max() > 0.03
    left, right = x > 0.3, x < -0.3  # the subject's left is right in the picture
    assert rest[0, left, 0].min() > rest[0, right, 0].max()


def test_looks_vary_and_held_out_looks_stay_out():
    views = [sample_view(np.random.default_rng(seed)) for seed in range(300)]
    assert {view.shading for view in views} == {"skin", "matte", "clay"}
    assert min(view.distance for view in views) >= 6
    assert 0.2 < np.mean([bool(view.environment) for view in views]) < 0.5
    assert 0.05 < np.mean([view.occluder is not None for view in views]) < 0.2
    for view in views:
        if view.occluder:
            assert np.pi * view.occluder[2] * view.occluder[3] <= 0.036


def test_held_out_looks_show_the_same_people_and_faces():
    for number, family in enumerate(HELD_OUT):
        usual, other = (sample_records(3, number, 1, 48, held_out) for held_out in (False, True))
        assert [row["values"] for row in usual] == [row["values"] for row in other]
        assert usual[0]["image"] != other[0]["image"]
        assert (usual[0]["held_out"], other[0]["held_out"]) == ("", family)
        same = {"skin_tone", "age", "gender", "yaw", "pitch", "roll", "blur", "subject"}
        assert all(usual[0][name] == other[0][name] for name in same)
    far, near = (np.abs(sample_subject(3, 3, name).identity - RIG.mean).mean() for name in ("unusual shape", ""))
    assert far > near


def test_another_skin_tone_leaves_the_person():
    light, dark = (sample_subject(3, 5, skin_tone=tone) for tone in (1, 10))
    np.testing.assert_array_equal(light.identity, dark.identity)
    assert light.look.skin.mean() > 3 * dark.look.skin.mean()
    assert (light.age, light.gender, light.gains) == (dark.age, dark.gender, dark.gains)


@pytest.mark.parametrize("shading", ["matte", "clay", "toon"])
def test_every_shading_still_shows_the_face(shading):
    rest, smile = (render_face(values, 3, view=View(shading=shading)).astype(float) for values in ({}, {"AU12": 1.0}))
    assert rest.std() > 15
    assert np.abs(smile - rest)[55:90].max() > 25
