"""Images as users have them: each gives the right pixels (checked by hand) or fails in one clear sentence."""

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from conftest import random_faces
from PIL import Image

from au_llava import pictures_au_llava
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.pictures_au_llava import load_face_image, load_reduced_image

RED, GREEN, BLUE = (200, 20, 10), (10, 180, 30), (5, 15, 220)


@pytest.fixture
def quarters() -> Image.Image:
    """20 x 40 pixels (width x height): red above left, green above right, blue below."""
    image = Image.new("RGB", (20, 40), BLUE)
    image.paste(RED, (0, 0, 10, 20))
    image.paste(GREEN, (10, 0, 20, 20))
    return image


def pixels(image) -> np.ndarray:
    image = load_face_image(image)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_path_string_and_pil_are_the_same(quarters, tmp_path):
    quarters.save(tmp_path / "face.png")
    for image in (tmp_path / "face.png", str(tmp_path / "face.png"), quarters, Image.open(tmp_path / "face.png")):
        np.testing.assert_array_equal(pixels(image), np.asarray(quarters))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # a fifth of black over white
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 257 * 77, (77, 77, 77)),
        ("I;16", 77, (0, 0, 0)),  # nearly black on a scale to 65535
        ("I", 257 * 77, (77, 77, 77)),
        ("F", 77.0, (77, 77, 77)),
    ],
)
def test_modes(mode, color, expected):
    np.testing.assert_array_equal(pixels(Image.new(mode, (20, 20), color)), np.full((20, 20, 3), expected))


def test_palette_with_transparency_is_laid_over_white(quarters, tmp_path):
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([*RED, *GREEN])
    palette.paste(1, (0, 0, 20, 10))
    palette.save(tmp_path / "face.gif", transparency=0)
    expected = np.full((20, 20, 3), 255)
    expected[:10] = GREEN
    np.testing.assert_array_equal(pixels(tmp_path / "face.gif"), expected)


def test_sixteen_bit_png(tmp_path):
    gray = np.arange(400, dtype=np.uint16).reshape(20, 20) * 164
    Image.fromarray(gray).save(tmp_path / "face.png")
    expected = np.round(gray / 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(pixels(tmp_path / "face.png"), expected)
    np.testing.assert_array_equal(pixels(gray), expected)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (2, Image.Transpose.FLIP_LEFT_RIGHT)],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_rotation_is_applied_once(quarters, tmp_path, orientation, undo, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters.transpose(undo).save(
        tmp_path / f"face.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {})
    )
    upright = load_face_image(tmp_path / f"face.{suffix}")
    assert upright.size == (20, 40)
    assert np.abs(np.asarray(upright).astype(int) - np.asarray(quarters)).mean() < 6  # JPEG is not exact
    np.testing.assert_array_equal(pixels(upright), np.asarray(upright))


def test_cmyk_jpeg(quarters, tmp_path):
    quarters.convert("CMYK").save(tmp_path / "face.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "face.jpg").astype(int) - np.asarray(quarters)).mean() < 8


def test_arrays_and_tensors_of_every_layout(quarters):
    expected = np.asarray(quarters)
    scaled = expected.astype(np.float32) / 255
    for array in (
        expected,
        expected.astype(np.int64),
        expected.astype(np.uint16) * 257,
        (expected.astype(np.uint16) * 257).astype(">u2"),  # as TIFF and PGM files store them
        scaled,
        scaled.astype(np.float64),
        scaled.astype(np.float16),
        np.moveaxis(expected, -1, 0),
        torch.tensor(expected),
        torch.tensor(scaled).permute(2, 0, 1).requires_grad_(),
        np.dstack([expected, np.full((40, 20), 255, np.uint8)]),
    ):
        np.testing.assert_array_equal(pixels(array), expected)
    gray = expected[..., 0]
    for array in (gray, gray[..., None], torch.tensor(gray)):
        np.testing.assert_array_equal(pixels(array), np.dstack([gray] * 3))
    rounded = torch.tensor(scaled).bfloat16()
    np.testing.assert_array_equal(pixels(rounded), (rounded.float() * 255).round().numpy())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((20, 20, 3), np.nan), "float64 must hold values from 0 to 1; nan to nan arrived"),
        (np.full((20, 20, 3), np.inf), "from 0 to 1; inf to inf"),
        (np.full((20, 20, 3), 128.0), "from 0 to 1; 128.0 to 128.0"),
        (np.full((20, 20, 3), -1), "int64 must hold values from 0 to 255; -1 to -1"),
        (np.full((20, 20, 3), 256), "0 to 255; 256 to 256"),
        (np.zeros((20, 20, 3), bool), "integers or floats; bool"),
        (np.full((20, 20), "x"), "integers or floats; <U1"),
        (np.zeros((20, 20, 5)), r"shape \(20, 20, 5\) arrived"),
        (np.zeros((5, 20, 20)), r"shape \(5, 20, 20\) arrived"),
        (np.zeros(20), r"shape \(20,\) arrived"),
        (np.zeros((0, 20, 3)), r"shape \(0, 20, 3\) arrived"),
        (torch.full((3, 20, 20), -0.5), r"0 to 1; -0\.5 to -0\.5"),
        (np.zeros((1, 1, 3)), "The image is 1 x 1 pixels; a face needs at least 16 x 16"),
    ],
)
def test_arrays_that_are_no_image(array, message):
    with pytest.raises(ValueError, match=message):
        load_face_image(array)


@pytest.mark.parametrize("thing", [None, 3, b"bytes", {"url": "x"}])
def test_things_that_are_no_image(thing):
    with pytest.raises(ValueError, match=f"a {type(thing).__name__} arrived"):
        AuLlavaImageProcessor()([thing])


def test_heic_is_read_with_its_plugin(quarters, tmp_path):
    pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    upright = quarters.resize((80, 160), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is stored with its top to the left
    for name in ("phone.heic", "renamed.jpg"):
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, "HEIF", quality=95, exif=exif.tobytes())
        assert pixels(tmp_path / name).shape == (160, 80, 3)
        assert np.abs(np.float32(pixels(tmp_path / name)) - np.float32(upright)).mean() < 4


def test_a_thumbnail_in_a_heic_is_never_taken_for_the_picture(quarters, tmp_path):
    """Its size need not be a half, a quarter or an eighth, and places would be wrong."""
    pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    quarters.resize((300, 600)).save(tmp_path / "phone.heic", "HEIF", thumbnails=[200])
    assert Image.open(tmp_path / "phone.heic").info["thumbnails"]
    image, factor = load_reduced_image(tmp_path / "phone.heic", 150)
    assert (image.size, factor) == ((300, 600), 1)


def test_heic_without_its_plugin_is_named_whatever_the_file_is_called(tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    (tmp_path / "renamed.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    message = r"cannot be read as an image: HEIC needs a plugin \(pip install pillow-heif\); or convert it to JPEG$"
    with pytest.raises(ValueError, match=f"renamed.jpg {message}"):
        load_face_image(tmp_path / "renamed.jpg")
    with pytest.raises(ValueError, match=f"photo {message}"):
        load_reduced_image(io.BytesIO((tmp_path / "renamed.jpg").read_bytes()), 96, "photo")


def test_files_that_cannot_be_read_are_named(quarters, tmp_path):
    quarters.resize((1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    quarters.resize((200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    quarters.save(tmp_path / "program.jpg", format="EPS")
    for name, message in {
        "dot.png": "dot.png is 1 x 1 pixels; a face needs at least 16 x 16",
        "text.jpg": "text.jpg cannot be read as an image",
        "empty.jpg": "empty.jpg cannot be read as an image",
        "folder.jpg": "folder.jpg is a folder",
        "half.jpg": "half.jpg cannot be read as an image: .*truncated",
        "program.jpg": "program.jpg cannot be read as an image: EPS is a program",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            load_face_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"half.jpg cannot be read as an image: .*truncated"):
        load_face_image(Image.open(tmp_path / "half.jpg"))  # Pillow opens lazily
    for missing in (
        tmp_path / "missing.jpg",
        str(tmp_path / "missing.jpg"),
        (tmp_path / "text.jpg").as_uri(),
        "a\0b",
        "",
    ):
        with pytest.raises(FileNotFoundError, match="There is no image file '"):
            load_face_image(missing)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_damaged_files_never_fail_otherwise(quarters, tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"face.{suffix}"
    quarters.save(path, exif=exif)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(100):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        for place in rng.integers(max(1, min(len(damaged), 100)), size=4 if damaged else 0):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        message = ""
        try:
            load_face_image(path)
        except ValueError as error:
            message = str(error)
        assert not message or path.name in message


@pytest.fixture
def served(quarters, tmp_path):
    """URL of a local server, on this machine only, that serves face.png."""
    quarters.save(tmp_path / "face.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls_are_fetched_only_when_asked_for(quarters, served, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    processor = AuLlavaImageProcessor()
    for url in (f"{served}/face.png", f"{served}/face.png".replace("http", "HTTP")):
        with pytest.raises(ValueError, match=r"face.png is a URL .*processor.image_processor.allow_urls = True"):
            processor(url)
    processor.allow_urls = True
    fetched, local = (
        processor(image, return_tensors="np")["pixel_values"] for image in (f"{served}/face.png", quarters)
    )
    np.testing.assert_array_equal(fetched, local)
    assert "allow_urls" not in processor.to_dict()
    with pytest.raises(ValueError, match=r"missing.png cannot be read as an image: .*404"):
        processor(f"{served}/missing.png")
    monkeypatch.setattr(pictures_au_llava, "MAX_DOWNLOAD", 20)
    with pytest.raises(ValueError, match=r"face.png cannot be read as an image: more than 0 MiB"):
        processor(f"{served}/face.png")


def test_files_in_base64(quarters):
    file = io.BytesIO()
    quarters.save(file, "PNG")
    for written in (base64.b64encode(file.getvalue()), base64.encodebytes(file.getvalue())):  # the second has lines
        for text in (written.decode(), f"data:image/png;base64,{written.decode()}", f"DATA:;Base64,{written.decode()}"):
            assert np.array_equal(load_face_image(text), quarters)
    half = base64.b64encode(file.getvalue()[: len(file.getvalue()) // 2]).decode()
    for text in (half, f"data:image/png;base64,{half}", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match=r"^The image cannot be read as an image: .{3,80}$"):
            load_face_image(text)
    with pytest.raises(ValueError, match="data URL without base64: 'data:image/png,%89PNG' arrived"):
        load_face_image("data:image/png,%89PNG")
    with pytest.raises(FileNotFoundError, match="There is no image file 'faces/0001'"):  # which could be base64
        load_face_image("faces/0001")


def test_pixels_by_hand():
    """No resizing: crop, scale and normalize are exact."""
    image = random_faces(1, size=48)[0]
    processor = AuLlavaImageProcessor(
        size={"shortest_edge": 48},
        crop_size={"height": 32, "width": 24},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 0.6, 0.7],
    )
    actual = processor(image, return_tensors="pt")["pixel_values"]
    cut = np.round(image * 255)[8:40, 12:36] / 255
    expected = np.moveaxis((cut - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7], -1, 0)
    assert actual.shape == (1, 3, 32, 24)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual[0], expected, atol=1e-5)


def test_resizing_is_pillows(quarters):
    processor = AuLlavaImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    resized = np.asarray(quarters.resize((32, 64), Image.Resampling.BICUBIC), dtype=np.float64)[16:48]
    actual = processor(quarters, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(actual, np.moveaxis(resized / 255 * 2 - 1, -1, 0), atol=1e-5)
    by_number = AuLlavaImageProcessor(
        size=32, crop_size=32
    )  # a number is the shorter side, not a square to squeeze into
    np.testing.assert_array_equal(by_number(quarters, return_tensors="np")["pixel_values"][0], actual)


def test_batches(quarters, tmp_path):
    quarters.save(tmp_path / "face.png")
    images = [quarters, str(tmp_path / "face.png"), random_faces(1)[0], Image.new("L", (300, 17), 9)]
    processor = AuLlavaImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    batch = processor(images, return_tensors="pt")["pixel_values"]
    assert batch.shape == (4, 3, 32, 32)
    for image, row in zip(images, batch, strict=True):
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"][0], row)
    stack = np.stack(random_faces(3))
    for many in (stack, torch.tensor(stack), list(stack), tuple(stack), [[face] for face in stack]):
        assert torch.equal(
            processor(many, return_tensors="pt")["pixel_values"],
            processor(list(stack), return_tensors="pt")["pixel_values"],
        )
    with pytest.raises(ValueError, match="There is no image: an empty list arrived"):
        processor([])


def test_a_black_image_without_a_face_works(tiny):
    model, processor = tiny
    answer = model.recognize(processor, Image.new("RGB", (64, 64)), formats=["bp4d"])[0]["bp4d"]
    assert all(0 <= reading.probability <= 1 for reading in answer.values())


def test_the_longer_side_is_no_more_than_100_times_the_shorter():
    """Resizing a small file of 16 x 1,500,000 pixels to 96 x 9,000,000 would fill the memory."""
    assert load_face_image(Image.new("RGB", (1600, 16))).size == (1600, 16)
    for size in ((1601, 16), (16, 1601)):
        with pytest.raises(ValueError, match="one side may be at most 100 times the other"):
            load_face_image(Image.new("RGB", size))


def test_saved_settings_come_back(tmp_path):
    processor = AuLlavaImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], resample=2
    )
    processor.save_pretrained(tmp_path)
    loaded = AuLlavaImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == AuLlavaImageProcessor.from_dict(processor.to_dict()).to_dict()
    face = random_faces(1)[0]
    assert torch.equal(
        loaded(face, return_tensors="pt")["pixel_values"], processor(face, return_tensors="pt")["pixel_values"]
    )


def test_bytes_in_memory_are_opened_by_the_user(quarters):
    """The way to pass an upload: wrap it, open it with Pillow."""
    buffer = io.BytesIO()
    quarters.save(buffer, "PNG")
    np.testing.assert_array_equal(pixels(Image.open(buffer)), np.asarray(quarters))
