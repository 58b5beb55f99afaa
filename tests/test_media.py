"""Pictures and videos are opened in one way: upright, in square pixels, as 8-bit sRGB, and told from broken ones."""

import io
import re
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, ImageCms

from au_llava.au_faces.media import DamagedVideo, count_frames, every_frame, is_video, video_frames
from au_llava.pictures_au_llava import load_face_image

RED, GREEN, BLUE, GRAY = (220, 30, 40), (20, 180, 60), (40, 60, 200), (200, 200, 200)
WIDTH, HEIGHT = 96, 64
UNDO = {  # EXIF orientation -> how an upright picture is stored (TIFF 6.0, tag 274)
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ONE = 1 << 16
MATRICES = {  # the same orientations as display matrices a, b, u, c, d, v, x, y, w: x' = a x + c y, y' = b x + d y
    1: (ONE, 0, 0, ONE),
    2: (-ONE, 0, 0, ONE),
    3: (-ONE, 0, 0, -ONE),
    4: (ONE, 0, 0, -ONE),
    5: (0, ONE, ONE, 0),
    6: (0, ONE, -ONE, 0),
    7: (0, -ONE, -ONE, 0),
    8: (0, -ONE, ONE, 0),
}


def quarters(size=(WIDTH, HEIGHT)) -> Image.Image:
    """Red and green above, blue and gray below: no two orientations look the same."""
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, GRAY])
    return image.resize(size, Image.Resampling.NEAREST)


def assert_alike(image, expected, within=8):
    """Of the same size and, away from edges, of the same colors."""
    assert image.mode == "RGB"
    assert image.size == expected.size
    for x in (0.25, 0.75):
        for y in (0.25, 0.75):
            place = int(x * image.width), int(y * image.height)
            np.testing.assert_allclose(image.getpixel(place), expected.getpixel(place), atol=within)


def stored(image, orientation):
    return image if UNDO[orientation] is None else image.transpose(UNDO[orientation])


def write_video(path, pictures, codec="libx264", pix_fmt="yuv420p", rate=10, times=None, matrix=None, **settings):
    """`times` in milliseconds. Further settings: `aspect`, `options`, `container`, `sound` in seconds, `tag`."""
    with av.open(str(path), "w", **settings.get("container", {})) as container:
        stream = container.add_stream(codec, rate=rate, options=settings.get("options", {}))
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, pix_fmt
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if "aspect" in settings:
            stream.codec_context.sample_aspect_ratio = settings["aspect"]
        if matrix:
            a, b, c, d = matrix
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        sound = None
        if settings.get("sound"):
            sound = container.add_stream("libopus" if str(path).endswith("webm") else "aac", rate=48000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            if "tag" in settings:
                frame = settings["tag"](frame, stream)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            for start in range(0, int(settings["sound"] * 48000), 960):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "mono")
                frame.sample_rate, frame.pts = 48000, start
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def noise(count=20, side=64):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def read(path):
    """Numbers of the frames that can be read, and what is wrong with the video."""
    numbers = []
    try:
        numbers.extend(frame.number for frame in video_frames(path))
    except DamagedVideo as error:
        return numbers, str(error)
    return numbers, None


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


# Pictures


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UNDO)
def test_all_orientations_of_pictures(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored(quarters(), orientation).save(tmp_path / f"face.{suffix}", exif=exif)
    assert_alike(load_face_image(tmp_path / f"face.{suffix}"), quarters())


def test_depths_of_gray(tmp_path):
    """Whatever numbers stand for black and white, the same gray comes out."""
    ramp = np.arange(400).reshape(20, 20) / 399
    files = {
        "eight.png": np.round(ramp * 255).astype(np.uint8),
        "sixteen.png": np.round(ramp * 65535).astype(np.uint16),
        "big_endian.tif": np.round(ramp * 65535).astype(">u2"),
        "integers.tif": np.round(ramp * 65535).astype(np.int32),
        "unit.tif": ramp.astype(np.float32),
        "overshoot.tif": (ramp * 1.04 - 0.02).astype(np.float32),
        "bytes.tif": (ramp * 255).astype(np.float32),
        "words.tif": (ramp * 65535).astype(np.float32),
    }
    for name, values in files.items():
        Image.fromarray(values).save(tmp_path / name)
        shown = np.asarray(load_face_image(tmp_path / name)).astype(float)
        expected = (ramp * 1.04 - 0.02).clip(0, 1) if name == "overshoot.tif" else ramp
        np.testing.assert_allclose(shown, 255 * expected[..., None].repeat(3, 2), atol=0.51, err_msg=name)
    for wrong in (np.full((20, 20), np.nan), ramp - 0.5, ramp * 1e6):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "wrong.tif")
        with pytest.raises(ValueError, match=r"wrong.tif cannot be read as an image: its gray values go from"):
            load_face_image(tmp_path / "wrong.tif")


def test_sixteen_bits_of_color(tmp_path):
    cv2 = pytest.importorskip("cv2")
    deep = np.asarray(quarters())[..., ::-1].astype(np.uint16) * 257
    for name in ("deep.png", "deep.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        assert_alike(load_face_image(tmp_path / name), quarters(), within=1)


def test_transparency_is_laid_over_white(tmp_path):
    """The left half is hidden; its own color, black, must not be seen."""
    gray = np.full((20, 20), 100, np.uint8)
    gray[:, :10] = 0
    alpha = np.where(gray == 0, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([gray, gray, gray, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([gray, alpha]), "LA").save(tmp_path / "la.png")
    Image.fromarray(gray).save(tmp_path / "value.png", transparency=0)
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "sixteen.png", transparency=0)
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(gray).convert("RGB").save(tmp_path / "color.png", transparency=(0, 0, 0))
    Image.fromarray(np.dstack([gray, gray, gray, alpha])).save(tmp_path / "rgba.webp", lossless=True)
    Image.fromarray(np.dstack([gray, gray, gray, alpha])).save(tmp_path / "rgba.tif")
    expected = np.where(alpha == 0, 255, 100)[..., None].repeat(3, 2)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(np.asarray(load_face_image(path)), expected, err_msg=path.name)


def swapped_profile() -> bytes:
    """sRGB with the primaries red and green exchanged: what is stored as red is green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[k : k + 4]): k for k in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)}
    profile[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], profile[tags[b"gXYZ"] : tags[b"gXYZ"] + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_color_profiles_are_converted(tmp_path, suffix):
    path, lossless = tmp_path / f"face.{suffix}", {"quality": 100}
    red, green, blue = quarters().split()
    Image.merge("RGB", (green, red, blue)).save(path, icc_profile=swapped_profile(), **lossless)
    assert_alike(load_face_image(path), quarters(), within=4)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    quarters().save(path, icc_profile=srgb, **lossless)
    assert_alike(load_face_image(path), load_face_image(quarters()), within=4)


def test_profiles_that_cannot_be_used_change_nothing(tmp_path):
    for name, image, profile in [
        ("damaged.png", quarters(), b"no profile"),
        ("short.png", quarters(), swapped_profile()[:200]),
        ("other.jpg", quarters().convert("CMYK"), swapped_profile()),
    ]:
        image.save(tmp_path / name, icc_profile=profile)
        assert_alike(load_face_image(tmp_path / name), quarters())
    gray = Image.new("L", (20, 20), 100)
    gray.save(tmp_path / "gray.png", icc_profile=swapped_profile())  # gray is gray in any such profile
    np.testing.assert_allclose(np.asarray(load_face_image(tmp_path / "gray.png")), 100, atol=1)


def test_hidden_colors_keep_their_profile(tmp_path):
    red, green, blue = quarters().split()
    half = Image.new("L", quarters().size, 255)
    half.paste(0, (0, 0, WIDTH, HEIGHT // 2))
    Image.merge("RGBA", (green, red, blue, half)).save(tmp_path / "face.png", icc_profile=swapped_profile())
    expected = Image.composite(quarters(), Image.new("RGB", half.size, "white"), half)
    assert_alike(load_face_image(tmp_path / "face.png"), expected, within=2)


# Files of several pictures


def animation():
    """Three pictures, new ones each time: Pillow keeps in a picture how it was last saved."""
    return [Image.new("RGB", (32, 32), color) for color in (RED, GREEN, BLUE)]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
def test_moving_pictures_are_videos(tmp_path, suffix):
    still, moving = tmp_path / f"still.{suffix}", tmp_path / f"moving.{suffix}"
    first, *others = animation()
    first.save(still)
    first.save(moving, save_all=True, append_images=others, duration=[200, 300, 100])
    assert (is_video(still), is_video(moving)) == (False, True)
    frames = list(video_frames(moving))
    assert [(frame.number, round(frame.time, 3)) for frame in frames] == [(1, 0.0), (2, 0.2), (3, 0.5)]
    for frame, picture in zip(frames, animation(), strict=True):
        assert_alike(frame.image, picture, within=12)
    assert [frame.number for frame in video_frames(moving, every=2)] == [1, 3]
    assert count_frames(moving) == 3


def test_animations_are_laid_over_white_and_time_is_what_browsers_take(tmp_path):
    clear = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(2)]
    for number, picture in enumerate(clear):
        picture.paste((*RED, 255), (8 * number, 0, 8 * number + 8, 32))
    clear[0].save(tmp_path / "a.gif", save_all=True, append_images=clear[1:], duration=0, disposal=2)
    first, second = video_frames(tmp_path / "a.gif")
    assert second.time == pytest.approx(0.1)
    for frame, bar in ((first, 4), (second, 12)):
        np.testing.assert_allclose(frame.image.getpixel((bar, 16)), RED, atol=2)
        assert frame.image.getpixel((24, 16)) == (255, 255, 255)


def test_a_stand_in_is_no_frame_of_an_apng(tmp_path):
    Image.new("RGB", (32, 32), GRAY).save(
        tmp_path / "a.png", save_all=True, append_images=animation(), default_image=True, duration=100
    )
    frames = list(video_frames(tmp_path / "a.png"))
    assert len(frames) == 3
    assert_alike(frames[0].image, animation()[0])


def test_damage_of_any_kind_inside_an_animation_is_named(tmp_path):
    """Pillow raises RuntimeError for the AVIF and DecompressionBombError for the GIF, whose third picture is huge."""
    pictures = noise(4)
    for suffix in ("gif", "avif"):
        path = tmp_path / f"a.{suffix}"
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
        content = bytearray(path.read_bytes())
        if suffix == "gif":
            place = [match.start() for match in re.finditer(rb"\x00,\x00\x00\x00\x00@\x00@\x00", content)][2]
            content[place + 6 : place + 10] = b"\xff\xff\xff\xff"
        else:
            middle = (content.rindex(b"mdat") + len(content)) // 2
            content[middle:] = bytes(len(content) - middle)
        path.write_bytes(content)
        numbers, problem = read(path)
        assert "is damaged" in problem, suffix
        assert len(numbers) < 4


def test_a_huge_picture_has_no_frames_to_count(tmp_path):
    quarters().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    head = b"IHDR" + 2 * (60_000).to_bytes(4) + content[24:29]
    (tmp_path / "a.png").write_bytes(content[:12] + head + zlib.crc32(head).to_bytes(4) + content[33:])
    assert not is_video(tmp_path / "a.png")
    assert count_frames(tmp_path / "a.png") == 0


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_videos_of_any_name_and_with_notes_in_any_encoding(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    name = Path(f"12:30 talk.{suffix}")  # FFmpeg would look for a protocol "12"
    content = write_video(tmp_path / f"plain.{suffix}", noise(3)).read_bytes()
    assert b"Lavf" in content  # who wrote it, now in Latin-1
    name.write_bytes(content.replace(b"Lavf", b"L\xe9vf"))
    assert len(read(name)[0]) == count_frames(name) == 3


def test_animations_that_break_off(tmp_path):
    pictures = noise(5)
    for name in ("a.gif", "a.png", "a.webp"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100)
        numbers, problem = read(cut(tmp_path / name, 0.7))
        assert "is damaged" in problem, name
        assert len(numbers) < 5


def test_pages_and_views_are_told(tmp_path):
    for name in ("pages.tif", "views.mpo"):
        first, *others = animation()
        first.save(tmp_path / name, save_all=True, append_images=others)
        assert not is_video(tmp_path / name)
        with pytest.warns(UserWarning, match=rf"{name} holds 3 pictures; only the first is read"):
            assert_alike(load_face_image(tmp_path / name), animation()[0])


def test_requests_with_several_pictures_are_refused():
    from au_llava.handler import read_images

    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        content = io.BytesIO()
        first, *others = animation()
        first.save(content, kind, save_all=True, append_images=others)
        with pytest.raises(ValueError, match="inputs holds 3 pictures, an animation or pages"):
            read_images({"inputs": content.getvalue()})


# Videos as they are shown


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("orientation", UNDO)
def test_all_orientations_of_videos(tmp_path, suffix, orientation):
    pictures = [stored(quarters(), orientation)] * 3
    path = write_video(tmp_path / f"film.{suffix}", pictures, matrix=MATRICES[orientation])
    frames = list(video_frames(path))
    assert len(frames) == 3
    for frame in frames:
        assert_alike(frame.image, quarters())


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(("width", "aspect"), [(72, Fraction(4, 3)), (144, Fraction(2, 3))])
def test_pixels_are_made_square(tmp_path, suffix, width, aspect):
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = write_video(tmp_path / f"film.{suffix}", [quarters((width, HEIGHT))] * 3, codec, aspect=aspect)
    for frame in video_frames(path):
        assert_alike(frame.image, quarters())


def test_pixels_are_made_square_before_the_picture_is_turned(tmp_path):
    pictures = [stored(quarters(), 6).resize((48, WIDTH))] * 3  # 64 x 96 stored with pixels of 4 : 3
    for frame in video_frames(write_video(tmp_path / "a.mp4", pictures, matrix=MATRICES[6], aspect=Fraction(4, 3))):
        assert_alike(frame.image, quarters())


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("colors", [Colorspace.ITU709, Colorspace.ITU601])
@pytest.mark.parametrize("reach", [ColorRange.MPEG, ColorRange.JPEG])
def test_matrix_range_and_depth_of_videos(tmp_path, pix_fmt, colors, reach):
    def tag(frame, stream):
        frame = frame.reformat(format=pix_fmt, dst_colorspace=colors, dst_color_range=reach)
        frame.color_range = stream.codec_context.color_range = reach
        frame.colorspace = stream.codec_context.colorspace = {Colorspace.ITU709: 1, Colorspace.ITU601: 6}[colors]
        return frame

    path = write_video(tmp_path / "film.mkv", [quarters()] * 3, "libx264", pix_fmt, tag=tag)
    for frame in video_frames(path):
        assert_alike(frame.image, quarters(), within=5)


@pytest.mark.parametrize(
    ("transfer", "levels"),
    [
        # SMPTE ST 2084: 0.581 is 203 cd/m2, which BT.2408 calls white; 0.508 is 100 cd/m2: (100 / 203) ** (1 / 2.2)
        (16, {0.581: 255, 0.508: 185}),
        (18, {0.75: 255}),  # BT.2100's HLG: BT.2408 puts white at 75 %
        (1, {0.75: 191}),  # standard range is left as it is
    ],
)
def test_high_dynamic_range_becomes_srgb(tmp_path, transfer, levels):
    codes = iter(levels)

    def tag(_, stream):
        code, frame = next(codes), av.VideoFrame(WIDTH, HEIGHT, "yuv420p10le")
        for plane, level in zip(frame.planes, (round(64 + 876 * code), 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, level, np.uint16).tobytes())
        for owner in (frame, stream.codec_context):
            owner.color_trc, owner.color_primaries, owner.colorspace, owner.color_range = transfer, 9, 9, 1
        return frame

    path = write_video(tmp_path / "film.mkv", [quarters()] * len(levels), "libx264", "yuv420p10le", tag=tag)
    for frame, expected in zip(video_frames(path), levels.values(), strict=True):
        np.testing.assert_allclose(frame.image.getpixel((WIDTH // 2, HEIGHT // 2)), expected, atol=4)


@pytest.mark.parametrize("width", [97, 98, 99, 854])  # FFmpeg pads the rows of these
def test_any_width_of_videos(tmp_path, width):
    path = write_video(tmp_path / "film.mkv", [quarters((width, HEIGHT))] * 2, "ffv1", "yuv444p")
    images = [frame.image for frame in video_frames(path)]
    assert len(images) == 2
    for image in images:
        assert_alike(image, quarters((width, HEIGHT)), within=3)


def test_a_frame_that_cannot_be_shown_is_damage(tmp_path):
    """Transparent frames are opened as pictures, which must be large enough."""
    path = write_video(tmp_path / "film.mov", [quarters((12, 12))], "qtrle", "argb")
    numbers, problem = read(path)
    assert numbers == []
    assert "frame 1 of" in problem
    assert "12 x 12 pixels" in problem


def test_colors_are_prepared_once_a_video(tmp_path, monkeypatch):
    """FFmpeg computes a table of colors for seconds (high dynamic range); each frame then takes a millisecond."""
    made = []

    def reformatter():
        made.append(VideoReformatter())
        return made[-1]

    monkeypatch.setattr("av.video.reformatter.VideoReformatter", reformatter)
    assert len(list(video_frames(write_video(tmp_path / "film.mkv", [quarters()] * 3)))) == 3
    assert len(made) == 1


def test_transparent_videos_are_laid_over_white(tmp_path):
    def clear(frame, stream):
        picture = quarters().convert("RGBA")
        picture.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
        return av.VideoFrame.from_ndarray(np.asarray(picture), "rgba").reformat(format="argb")

    path = write_video(tmp_path / "film.mov", [quarters()] * 3, "qtrle", "argb", tag=clear)
    expected = quarters()
    expected.paste("white", (0, 0, WIDTH // 2, HEIGHT))
    for frame in video_frames(path):
        assert_alike(frame.image, expected, within=0)


# Whole and broken videos


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "mov"])
@pytest.mark.parametrize("sound", [0.5, 2.0, 6.0])
def test_sound_does_not_tell_where_a_video_ends(tmp_path, suffix, sound):
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = write_video(tmp_path / f"film.{suffix}", noise(), codec, sound=sound)
    assert read(path) == (list(range(1, 21)), None)
    assert count_frames(path) == 20


@pytest.mark.parametrize("sound", [0, 2.0, 6.0])
@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "avi"])
def test_a_video_that_was_cut_is_told(tmp_path, suffix, sound):
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(suffix, "libx264")
    container = {"options": {"movflags": "faststart"}} if suffix == "mp4" else {}
    path = write_video(tmp_path / f"film.{suffix}", noise(), codec, sound=0 if suffix == "avi" else sound)
    path = write_video(path, noise(), codec, sound=0 if suffix == "avi" else sound, container=container)
    for share in (0.6, 0.3):
        numbers, problem = read(cut(path, share))
        assert len(numbers) < 20
        assert problem is not None
        assert path.name in problem


def test_matroska_without_statistics(tmp_path):
    """Where the video track says nothing of its length, the end of the longest track tells."""
    path = write_video(tmp_path / "film.mkv", noise(), sound=6.0)
    content = path.read_bytes()
    assert content.count(b"DURATION") == 2
    path.write_bytes(content.replace(b"DURATION", b"DURATIOX"))
    assert read(path) == (list(range(1, 21)), None)
    assert "breaks off" in read(cut(path, 0.5))[1]


def test_the_last_frame_lasts(tmp_path):
    """Variable frame rate: the last picture stands for three seconds."""
    times = [0, 100, 200, 900, 1000, 4000]
    for name in ("film.mp4", "film.mkv"):
        path = write_video(tmp_path / name, noise(6), times=times)
        assert read(path) == (list(range(1, 7)), None)
        assert [round(frame.time, 2) for frame in video_frames(path)] == [each / 1000 for each in times]


@pytest.mark.parametrize("offset", [-500, 2000])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_videos_that_start_early_or_late(tmp_path, suffix, offset):
    times = [offset + 100 * number for number in range(20)]
    container = {"options": {"avoid_negative_ts": "disabled"}} if suffix == "mp4" else {}
    path = write_video(tmp_path / f"film.{suffix}", noise(), times=times, sound=4.0, container=container)
    numbers, problem = read(path)
    assert problem is None
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) in (
        (20,) if offset > 0 or suffix != "mp4" else (15, 20)
    )  # an edit list may hide what is before 0
    assert next(iter(video_frames(path))).time == 0


def test_videos_that_do_not_say_how_long_they_are(tmp_path):
    for name, codec, container in [
        ("film.h264", "libx264", {}),
        ("film.hevc", "libx265", {}),
        ("film.m2v", "mpeg2video", {}),
        ("live.mkv", "libx264", {"options": {"live": "1"}}),
        ("pieces.mp4", "libx264", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("film.ts", "libx264", {}),
        ("film.flv", "flv", {}),
        ("film.mpg", "mpeg2video", {}),
    ]:
        rate = 25 if "mpeg2" in codec else 10
        path = write_video(tmp_path / name, noise(), codec, rate=rate, container=container)
        assert read(path) == (list(range(1, 21)), None), name
        np.testing.assert_allclose([frame.time for frame in video_frames(path)], np.arange(20) / rate, atol=0.002)


@pytest.mark.parametrize("lengths", [(20, 30), (30, 20)])
def test_time_goes_on_where_recordings_were_put_end_to_end(tmp_path, lengths):
    """Each part of an .mts or .ts file that `cat` joined has its own clock; ten frames a second."""
    parts = [write_video(tmp_path / f"{count}.ts", noise(count)).read_bytes() for count in lengths]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    frames = list(video_frames(path))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(50) / 10, atol=1e-4)
    assert [frame.number for frame in video_frames(path, fps=5)] == list(range(1, 51, 2))


def test_reordered_frames_come_in_order(tmp_path):
    pictures = [Image.new("RGB", (64, 64), (12 * number,) * 3) for number in range(20)]
    for name in ("film.avi", "film.mkv", "film.mp4"):
        codec = "mpeg4" if name == "film.avi" else "libx264"
        path = write_video(tmp_path / name, pictures, codec, options={"bf": "2"})
        assert read(path) == (list(range(1, 21)), None), name
        levels = [frame.image.getpixel((32, 32))[0] for frame in video_frames(path)]
        np.testing.assert_allclose(levels, 12 * np.arange(20), atol=9, err_msg=name)


def two_tracks(path, first, second, disposition):
    """A video of two tracks: solid red, of `first` frames, and green, of `second`; `disposition` is the first one's."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=10) for codec in ("mjpeg", "libx264")]
        streams[0].disposition = disposition
        for stream, pix_fmt in zip(streams, ("yuvj420p", "yuv420p"), strict=True):
            stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        streams[1].disposition = Disposition.default
        for stream, count, color in zip(streams, (first, second), (RED, GREEN), strict=True):
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64), color))))
            container.mux(stream.encode())
    return path


def test_a_cover_is_no_video(tmp_path):
    path = two_tracks(tmp_path / "film.mp4", 1, 20, Disposition.attached_pic)
    frames = list(video_frames(path))
    assert len(frames) == 20
    np.testing.assert_allclose(frames[0].image.getpixel((32, 32)), GREEN, atol=8)
    assert count_frames(path) == 20


def test_the_default_track_of_several_is_read_and_told(tmp_path):
    path = two_tracks(tmp_path / "film.mkv", 5, 20, Disposition(0))
    with pytest.warns(UserWarning, match=r"film.mkv holds 2 video tracks; only stream 1 is read"):
        frames = list(video_frames(path))
    assert len(frames) == 20
    np.testing.assert_allclose(frames[0].image.getpixel((32, 32)), GREEN, atol=8)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert read(tmp_path / "sound.mp4") == ([], f"{tmp_path / 'sound.mp4'} holds no moving pictures.")
    assert count_frames(tmp_path / "sound.mp4") == 0


def test_counted_reading_ends_where_frames_are_lost(tmp_path):
    """Label files count frames: after a packet that cannot be decoded, nobody knows the number of the next."""
    path = write_video(tmp_path / "film.mkv", noise(), "mjpeg", "yuvj420p")
    whole = list(every_frame(path, lambda number, time: number in {2, 3}, counted=True))
    assert [frame.number for frame in whole if frame.image is not None] == [2, 3]
    assert len(whole) == 20
    content = path.read_bytes().split(b"\xff\xd8\xff")  # where each JPEG starts
    content[10] = bytes(len(content[10]))
    path.write_bytes(b"\xff\xd8\xff".join(content[:10]) + bytes(3) + b"\xff\xd8\xff".join(content[10:]))
    found = {}
    for counted in (True, False):
        frames = []
        with pytest.raises(DamagedVideo, match="is damaged"):
            frames.extend(every_frame(path, lambda number, time: False, counted=counted))
        found[counted] = [frame.number for frame in frames]
    assert found[True] == list(range(1, 10))
    assert 12 < len(found[False]) < 20


# Preparation sees what recognition sees


def test_preparation_reads_as_recognition_does(tmp_path):
    from au_llava.au_datasets.records import Defects
    from au_llava.au_readers.pictures import video_frames as labelled_frames
    from au_llava.au_readers.source import Picture

    clear = quarters().convert("RGBA")
    clear.putalpha(120)
    exif = Image.Exif()
    exif[0x0112] = 5
    clear.save(tmp_path / "clear.png", exif=exif)
    Image.fromarray(np.asarray(quarters().convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("clear.png", "deep.png"):
        opened = Picture(str(tmp_path / name)).open()
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(load_face_image(tmp_path / name)))
    turned = [stored(quarters(), 7).resize((48, WIDTH))] * 3
    path = write_video(tmp_path / "film.mp4", turned, matrix=MATRICES[7], aspect=Fraction(4, 3))
    defects = Defects()
    for (number, picture), frame in zip(
        labelled_frames(path, {1, 3}, "film", defects), every_frame(path, lambda *_: True), strict=True
    ):
        assert number == frame.number
        if number == 2:
            assert picture.frame is None
        else:
            np.testing.assert_array_equal(np.asarray(picture.open()), np.asarray(frame.image))
            assert_alike(picture.open(), quarters())
    assert not defects.lines()
