"""Where readers look: what operating systems leave behind, links, a root too high, too low or not unpacked."""

import pytest
from dataset_trees import (
    AFF_WILD2_HEADER,
    BP4D_HEADER,
    disfa_labels,
    feafa_line,
    feafa_tree,
    occurrence_row,
    write,
    write_images,
)
from reading import keys, read

from au_llava.action_units import FORMATS
from au_llava.au_readers.aff_wild2 import open_aff_wild2
from au_llava.au_readers.bp4d import open_bp4d
from au_llava.au_readers.ck_plus import open_ck_plus
from au_llava.au_readers.disfa import open_disfa
from au_llava.au_readers.feafa import open_feafa
from au_llava.au_readers.gft import open_gft
from au_llava.au_readers.table import open_emotionet
from au_llava.prepare_data import run


# ---- What operating systems leave behind, links ---------------------------------------------------------------
def bp4d_of_two(root):
    write(root / "AUCoding" / "AU_OCC" / "F001_T1.csv", f"{BP4D_HEADER}\n{occurrence_row(1)}\n{occurrence_row(2)}\n")
    write_images(root / "images" / "F001" / "T1", ["0001.jpg", "0002.jpg"])
    return lambda: open_bp4d(root)


def disfa_of_two(root):
    disfa_labels(root, "SN001", [1, 2])
    write_images(root / "frames" / "SN001", ["0.png", "1.png"])
    return lambda: open_disfa(root)


def feafa_of_two(root):
    for frame in (0, 1):
        write(root / "FEAFA-A" / "PV001.output" / f"{frame:08d}.auw", feafa_line(frame))
    write_images(root / "FEAFA-A" / "PV001.output", ["00000000.jpg", "00000001.jpg"])
    return lambda: open_feafa(root)


def gft_of_two(root):
    write(
        root / "AU" / "001A.csv",
        "Frame," + ",".join(FORMATS["gft"].labels) + "\n" + "1" + ",0" * 10 + "\n2" + ",1" * 10,
    )
    write_images(root / "images" / "001A", ["1.jpg", "2.jpg"])
    return lambda: open_gft(root)


def aff_wild2_of_two(root):
    rows = "\n".join([AFF_WILD2_HEADER, "0" + ",0" * 11, "1" + ",1" * 11])
    write(root / "AU_Detection_Challenge" / "Train_Set" / "video1.txt", rows)
    write(root / "AU_Set" / "Validation_Set" / "video2.txt", rows)
    write_images(root / "cropped_aligned" / "video1", ["00001.jpg", "00002.jpg"])
    return lambda: open_aff_wild2(root)


def ck_plus_of_two(root):
    for sequence in ("001", "002"):
        write(root / "FACS" / "S005" / sequence / f"S005_{sequence}_00000011_facs.txt", "9.0e+00 1.0e+00\n")
        write_images(root / "cohn-kanade-images" / "S005" / sequence, [f"S005_{sequence}_00000011.png"])
    return lambda: open_ck_plus(root)


def emotionet_of_two(root):
    names = ["N_0000000001_00001.jpg", "N_0000000002_00001.jpg"]
    lines = ["URL," + ",".join(f"'AU {label[2:]}'" for label in FORMATS["emotionet"].labels)]
    write(
        root / "EmotioNet_FACS_aws_2020_24600.csv", "\n".join([*lines, *(f"'http://x/{n}'" + ",0" * 12 for n in names)])
    )
    write_images(root / "images", names)
    return lambda: open_emotionet(root)


COPIES = (bp4d_of_two, disfa_of_two, feafa_of_two, gft_of_two, aff_wild2_of_two, ck_plus_of_two, emotionet_of_two)


@pytest.mark.parametrize("make", COPIES)
def test_what_systems_leave_in_folders_is_no_data(make, tmp_path):
    """`._name` beside each file and in __MACOSX (AppleDouble), Thumbs.db, .DS_Store, an unreadable lost+found."""
    root = tmp_path / "a copy"
    read_copy = make(root)
    clean, expected = read(read_copy())
    assert len(keys(clean)) == 2
    for path in [path for path in root.rglob("*") if path.is_file()]:
        for twin in (path.with_name(f"._{path.name}"), root / "__MACOSX" / path.relative_to(root)):
            write(twin, b"\x00\x05\x16\x07Mac OS X\xb0")
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
            write(path.with_name(name), b"\xff")
    records, defects = read(read_copy())
    assert keys(records) == keys(clean)
    assert [record["image"] for record in records] == [record["image"] for record in clean]
    assert defects == expected


@pytest.mark.parametrize("make", COPIES)
def test_links_are_followed_and_end(make, tmp_path):
    """Folders that are links, and one that leads back to the root: nothing is lost or read twice."""
    root = tmp_path / "linked"
    root.mkdir()
    read_copy = make(tmp_path / "real")
    clean, expected = read(read_copy())
    for folder in (tmp_path / "real").iterdir():
        (root / folder.name).symlink_to(folder)
    read_copy = make(root)  # writes through the links what is there already
    (root / "zz back").symlink_to(root)
    records, defects = read(read_copy())
    assert keys(records) == keys(clean)
    assert defects == expected


def test_links_in_circles_do_not_multiply_clips(tmp_path):
    """Two folders that link to each other, as no check of one link alone finds out."""
    read_copy = gft_of_two(tmp_path)
    clean, expected = read(read_copy())
    for one, other in (("x", "y"), ("y", "x")):
        (tmp_path / one).mkdir(exist_ok=True)
        (tmp_path / one / f"to {other}").symlink_to(tmp_path / other)
    records, defects = read(read_copy())
    assert keys(records) == keys(clean)
    assert defects == expected


# ---- A wrong root ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", COPIES)
def test_a_root_one_level_too_high_is_found(make, tmp_path):
    clean, _ = read(make(tmp_path / "data" / "a copy")())
    open_source = {
        bp4d_of_two: open_bp4d,
        disfa_of_two: open_disfa,
        feafa_of_two: open_feafa,
        gft_of_two: open_gft,
        aff_wild2_of_two: open_aff_wild2,
        ck_plus_of_two: open_ck_plus,
        emotionet_of_two: open_emotionet,
    }[make]
    assert [record["image"] for record in read(open_source(tmp_path / "data"))[0]] == [each["image"] for each in clean]


def test_a_root_one_level_too_low_is_found_or_told(tmp_path):
    bp4d, images = tmp_path / "BP4D", tmp_path / "BP4D" / "images" / "F001"
    clean = keys(read(bp4d_of_two(bp4d)())[0])
    with pytest.raises(
        FileNotFoundError, match=r"no folder of images such as F001/T1/2440\.jpg and no video .* --images"
    ):
        open_bp4d(bp4d / "AUCoding")
    assert keys(read(open_bp4d(bp4d / "AUCoding", images))[0]) == clean
    with pytest.raises(FileNotFoundError, match=r"no folder AUCoding in .*AU_OCC: --root is the folder that holds it"):
        open_bp4d(bp4d / "AUCoding" / "AU_OCC")
    aff = tmp_path / "aff"
    clean = keys(read(aff_wild2_of_two(aff)())[0])
    assert keys(read(open_aff_wild2(aff, aff / "cropped_aligned"))[0]) == clean
    ck = tmp_path / "ck"
    clean = keys(read(ck_plus_of_two(ck)())[0])
    assert keys(read(open_ck_plus(ck / "FACS", ck / "cohn-kanade-images"))[0]) == clean


def test_two_copies_below_the_root_are_named(tmp_path):
    for name in ("a", "b"):
        bp4d_of_two(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=f"2 folders AUCoding below .*: take one, such as --root {tmp_path}/a$"):
        open_bp4d(tmp_path)


def test_what_is_not_unpacked_is_named(tmp_path):
    write(tmp_path / "AUCoding" / "AU_OCC" / "F001_T1.csv", BP4D_HEADER)
    write(tmp_path / "2D+3D" / "F001.zip", b"PK")
    with pytest.raises(FileNotFoundError, match=r"\(2D\+3D/F001.zip is not unpacked\)"):
        open_bp4d(tmp_path, plus=True)
    write(tmp_path / "disfa" / "ActionUnit_Labels" / "SN001.rar", b"")
    with pytest.raises(FileNotFoundError, match=r"no folders such as SN001 in .* \(SN001.rar is not unpacked\)"):
        open_disfa(tmp_path / "disfa")


@pytest.mark.parametrize(
    ("dataset", "needed"),
    [
        ("bp4d", "no folder AUCoding in"),
        ("bp4d-plus", "no folder AUCoding in"),
        ("disfa", "no folder ActionUnit_Labels in"),
        ("feafa", r"no folder such as FEAFA-A/PV001.output"),
        ("feafa-plus", r"no folder such as FEAFA-A/PV001.output"),
        ("gft", r"no .csv file with AU columns below"),
        ("aff-wild2", "no folder AU_Detection_Challenge/Train_Set"),
        ("ck-plus", "no folder FACS in"),
        ("emotionet", "no EmotioNet_FACS_aws_2020_24600.csv below"),
        ("table --format disfa", "there is no table"),
    ],
)
def test_a_wrong_root_is_one_sentence(dataset, needed, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = [*dataset.split(), "--root", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    assert run(words) == 1
    error = capsys.readouterr().err
    assert needed in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run([*words[:-3], str(tmp_path / "nowhere"), *words[-2:]]) == 1
    assert "there is no" in capsys.readouterr().err
    if not dataset.startswith("table"):
        assert run([*words, "--images", str(tmp_path / "no images")]) == 1
        assert capsys.readouterr().err == f"prepare_data.py: there is no folder {tmp_path}/no images\n"


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda root: (root / "AUCoding").mkdir(), "no label files such as F001_T1.csv"),
        (lambda root: write(root / "AUCoding" / "F001_T1.csv", BP4D_HEADER), "no folder of images such as F001/T1"),
    ],
)
def test_half_a_bp4d_is_named(tmp_path, make, missing):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match=missing):
        open_bp4d(tmp_path)


def test_half_a_disfa_and_feafa_are_named(tmp_path):
    root = feafa_tree(tmp_path)
    disfa_labels(tmp_path, "SN001", range(3))
    with pytest.raises(FileNotFoundError, match=r"no video such as LeftVideoSN001_comp\.avi and no folder of images"):
        open_disfa(tmp_path)
    with pytest.raises(FileNotFoundError, match="part B's images are DISFA's: give --disfa"):
        open_feafa(root, plus=True)
