# SPDX-License-Identifier: Apache-2.0
"""Folders as people have them, and what an image file shows."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from support.recordings import encoded, picture

from xsvggt_ros.evaluation.datasets import EvaluationSequence, _frames, readable
from xsvggt_ros.natural_order import naturally_sorted, numbers
from xsvggt_ros.replay.sources import Images, open_source
from xsvggt_ros.replay.sources.folder import HEIF_SUFFIXES, READ_SUFFIXES, read_image

RAMP = np.tile(np.linspace(0, 1, 64), (48, 1))


def replayed(folder):
    """The images of a folder, as a replay has them, and why others are not among them."""
    with open_source(folder) as source:
        images = Images(source)
        return [image.image for image in images], images.skipped


def evaluated(folder):
    """The same, as an evaluation has them."""
    frames = _frames(folder, naturally_sorted(folder.iterdir()))
    return [frame.image for frame in readable(EvaluationSequence(folder.name, frames))]


def write(folder, names, index=0):
    for name in names:
        (folder / name).write_bytes(encoded(picture(index), ".png"))


# --- what a file shows --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_grey_is_stretched(tmp_path, bits):
    for suffix in (".png", ".tiff", ".pgm"):
        cv2.imwrite(str(tmp_path / f"a{suffix}"), (RAMP * (2**bits - 1)).astype(np.uint16))
    for image in (*replayed(tmp_path)[0], *evaluated(tmp_path)):
        np.testing.assert_allclose(image[..., 1], 255 * RAMP, atol=1)


def test_16_bit_colour_is_that_of_8_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture(3)[..., ::-1].astype(np.uint16) * 257)
    for images in (replayed(tmp_path)[0], evaluated(tmp_path)):
        np.testing.assert_array_equal(images[0], picture(3))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "1", "P", "RGB"])
def test_files_of_every_mode_are_the_same_rgb_in_replay_and_evaluation(tmp_path, mode):
    image = Image.fromarray(picture(2))
    image = image.convert("L") if mode in ("LA", "1") else image
    image.convert(mode).save(tmp_path / "a.png")
    (replay,), (evaluation,) = replayed(tmp_path)[0], evaluated(tmp_path)
    np.testing.assert_array_equal(replay, evaluation)
    assert replay.shape == (48, 64, 3)
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(replay, picture(2))


@pytest.mark.parametrize(("alpha", "grey"), [(0, 255), (127, 255 - 127), (255, 0)])
def test_transparent_files_lie_over_white(tmp_path, alpha, grey):
    for name, mode in (("a.png", "RGBA"), ("b.png", "LA"), ("c.webp", "RGBA")):
        Image.new(mode, (64, 48), (*(0,) * (len(mode) - 1), alpha)).save(tmp_path / name)
        np.testing.assert_allclose(read_image(tmp_path / name), grey, atol=1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    """Against Pillow's own reading of it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture(1)).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got = read_image(path)
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).mean() < 2


def test_exif_that_cannot_be_read_is_of_no_matter(tmp_path):
    data = encoded(picture(1), ".jpg")
    segment = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:])
    assert read_image(path).shape == (48, 64, 3)


@pytest.mark.skipif(".heic" not in READ_SUFFIXES, reason="pillow-heif is not installed (extra heif)")
def test_heic_is_read_where_its_library_is_there(tmp_path):
    Image.fromarray(picture(1)).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.heic").read_bytes())
    for image in replayed(tmp_path)[0]:
        assert np.abs(image.astype(int) - picture(1)).mean() < 6


# --- what is in a folder ------------------------------------------------------------------------------


def odd_entry(folder, kind):
    match kind:
        case "link to nothing":
            (folder / "f1b.png").symlink_to("/nowhere.png")
        case "link to itself":
            (folder / "f1b.png").symlink_to(folder / "f1b.png")
        case "folder":
            (folder / "f1b.png").mkdir()
        case "resource fork":
            (folder / "._f1.png").write_bytes(b"\0\5\x16\7")
        case "fifo":
            os.mkfifo(folder / "f1b.png")


@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "folder", "resource fork", "fifo"])
def test_entries_that_are_no_files_are_named_and_cost_nothing(tmp_path, caplog, kind):
    write(tmp_path, [f"f{i}.png" for i in range(4)])
    odd_entry(tmp_path, kind)
    images, skipped = replayed(tmp_path)
    assert len(images) == 4 and not skipped
    assert "1 entries" in caplog.text and ("f1b.png" in caplog.text or "._f1.png" in caplog.text)


@pytest.mark.parametrize("content", [b"", b"text", encoded(picture(0), ".png")[:300]])
def test_damaged_files_are_named_in_replay_and_evaluation(tmp_path, caplog, content):
    write(tmp_path, [f"f{i}.png" for i in range(4)])
    (tmp_path / "f2.png").write_bytes(content)
    images, skipped = replayed(tmp_path)
    assert len(images) == 3 and len(skipped) == 1 and skipped[0].startswith("f2.png: ")
    assert len(evaluated(tmp_path)) == 3
    assert "frame 2 is left out" in caplog.text and "f2.png" in caplog.text


@pytest.mark.parametrize("suffix", [".cr2", ".GIF", *(s for s in HEIF_SUFFIXES if s not in READ_SUFFIXES)])
def test_images_of_other_kinds_are_mentioned(tmp_path, caplog, suffix):
    write(tmp_path, ["f0.png", f"f1{suffix}", f"f2{suffix}"])
    assert len(replayed(tmp_path)[0]) == 1
    assert f"left out: 2 {suffix.lower()}; convert them to JPEG or PNG" in caplog.text


@pytest.mark.parametrize(
    ("inner", "named"),
    [(["rgb"], "/rgb"), (["image_0", "image_1"], "/image_0"), (["mav0/cam0/data"], "/mav0/cam0/data")],
)
def test_a_folder_whose_images_lie_deeper_says_where(tmp_path, inner, named):
    for name in inner:
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name, ["1.png"])
    with pytest.raises(ValueError, match=f"give one of the folders in it that have images: {tmp_path}{named}"):
        replayed(tmp_path)


def test_a_folder_without_images_anywhere(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="has no images") as error:
        replayed(tmp_path)
    assert "give one" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ["img1", "img2", "img10", "img20"],
        ["1305031102.175304", "1305031102.2", "1305031102.211214", "1305031103.0"],
        ["1403636579763555584", "1403636579763555585", "1403636579813555456"],
        ["a2_1", "a2_2", "a10_1", "B1"],
        ["frame-000001.color", "frame-000001.depth", "frame-000002.color"],
    ],
)
def test_names_are_in_natural_order(tmp_path, names):
    paths = [tmp_path / f"{name}.png" for name in names]
    assert naturally_sorted(reversed(paths)) == paths


def test_numbers_of_a_name(tmp_path):
    assert numbers(tmp_path / "cam2" / "frame_12_1305.25.png") == [12, 1305.25]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 1), (8, 3)])
def test_files_of_every_kind_are_turned_once(tmp_path, suffix, orientation, turns):
    upright = np.zeros((90, 120, 3), np.uint8)
    upright[:45] = 200  # sky
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(upright, turns)).save(tmp_path / f"a.{suffix}", exif=exif)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (90, 120, 3) and image[:20].mean() > 150 > image[-20:].mean()


def test_a_damaged_heic_is_named_in_words(tmp_path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    with pytest.raises(ValueError, match="it is a HEIC that is damaged"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("names", [["rgb_{}", "depth_{}"], ["left{}", "right{}"], ["{}_l", "{}_r"]])
def test_several_series_in_one_folder_are_said(tmp_path, caplog, names):
    write(tmp_path, [f"{name.format(i)}.png" for name in names for i in range(3)])
    assert len(replayed(tmp_path)[0]) == 6
    assert "has images of 2 series" in caplog.text


def test_one_series_is_no_word_worth(tmp_path, caplog):
    write(tmp_path, [*(f"frame-{i}.color.png" for i in range(3)), *(f"frame-{i}.depth.png" for i in range(3))])
    replayed(tmp_path)
    write(tmp_path, ["cover.png"])
    replayed(tmp_path)
    assert not caplog.text


def test_a_folder_of_other_files_says_which(tmp_path):
    for name in ("a.mp4", "b.MP4", "c"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has no images .*; there are 2 \.mp4, 1 without suffix"):
        replayed(tmp_path)


def test_a_video_that_is_called_an_image_is_no_heic(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypisom" + bytes(60))
    with pytest.raises(ValueError, match="of a kind that is not read"):
        read_image(tmp_path / "a.jpg")
