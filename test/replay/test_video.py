# SPDX-License-Identifier: Apache-2.0
"""Videos as cameras and telephones make them: whole, cut off, damaged, of variable rate, turned."""

import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from support.recordings import SECOND, picture

from xsvggt_ros.replay.sources import Images, open_source

COUNT, RATE = 20, 10
SIZE = (48, 64)


def replayed(path, **options):
    """The images of a video, why others are not among them, and what is missing."""
    with open_source(path, **options) as source:
        images = Images(source)
        return list(images), images.skipped, source.damage


def opencv_video(path, codec, count=COUNT):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), float(RATE), SIZE[::-1])
    for i in range(count):
        writer.write(cv2.cvtColor(picture(i, SIZE), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def video(path, codec, seconds=None, options=None, audio_s=0.0):
    """Of COUNT images, at RATE or at these times."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.bit_rate = 4_000_000
        unit = Fraction(1, 1000) if seconds else Fraction(1, RATE)
        stream.codec_context.time_base = unit
        sound = container.add_stream("aac", rate=8000) if audio_s else None
        for i in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(i, SIZE), format="rgb24")
            frame.pts, frame.time_base = round(1000 * seconds[i]) if seconds else i, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            for i in range(int(audio_s * 8000 / 1024)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 8000, 1024 * i
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def positions(path):
    """Where each packet of the images lies in the file, and its size."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def overwritten(path, position, content):
    data = bytearray(path.read_bytes())
    data[position : position + len(content)] = content
    path.write_bytes(data)
    return path


def which(images):
    """Which pictures these are: a third colour tells."""
    return [round(float(image.image[..., 2].mean()) / 10) for image in images]


FORMATS = [("mpeg4", "a.mp4"), ("mjpeg", "a.avi"), ("libx264", "b.avi"), ("libx264", "a.mkv"), ("libvpx", "a.webm")]


@pytest.fixture(params=FORMATS, ids=lambda param: "-".join(param))
def whole(request, tmp_path):
    codec, name = request.param
    if codec == "mjpeg":
        return opencv_video(tmp_path / name, "MJPG")
    return video(tmp_path / name, codec)


def test_images_and_stamps(whole):
    images, skipped, damage = replayed(whole)
    assert which(images) == list(range(COUNT)) and not skipped and not damage
    assert [image.stamp_ns for image in images] == [i * SECOND // RATE for i in range(COUNT)]


def test_rate_and_stride(whole):
    images, _, damage = replayed(whole, rate=5.0, stride=3)
    assert which(images) == [0, 3, 6, 9, 12, 15, 18] and not damage
    assert [image.stamp_ns for image in images] == [3 * i * SECOND // 5 for i in range(7)]


def test_the_same_video_gives_the_same_images(whole):
    once, again = replayed(whole)[0], replayed(whole)[0]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize(("codec", "name"), [("MJPG", "a.avi"), ("mp4v", "a.mp4"), ("MJPG", "a.mkv")])
def test_colours_are_those_of_opencv(tmp_path, codec, name):
    path = opencv_video(tmp_path / name, codec, 3)
    capture = cv2.VideoCapture(str(path))
    for image in replayed(path)[0]:
        assert np.abs(image.image.astype(int) - capture.read()[1][..., ::-1]).max() <= 6
    capture.release()


@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mp4"), ("libx264", "a.mkv"), ("libvpx", "a.webm")])
def test_stamps_are_the_containers_own(tmp_path, codec, name):
    """A telephone in the dark; H.264's images are stored in another order than they are shown."""
    seconds = np.cumsum([0.0, *([0.033] * 5), *([1.0] * 4), *([0.033] * 10)]).round(3).tolist()
    images, skipped, damage = replayed(video(tmp_path / name, codec, seconds))
    assert which(images) == list(range(COUNT)) and not skipped and not damage
    np.testing.assert_allclose([image.stamp_ns / SECOND for image in images], seconds, atol=2e-3)


def test_stamps_begin_at_zero(tmp_path):
    images, _, damage = replayed(video(tmp_path / "a.mkv", "libx264", [100 + i / RATE for i in range(COUNT)]))
    assert [image.stamp_ns for image in images] == [i * SECOND // RATE for i in range(COUNT)] and not damage


def test_a_stream_without_stamps_has_those_of_its_rate(tmp_path):
    images, _, damage = replayed(video(tmp_path / "a.h264", "libx264"))
    assert len(images) == COUNT and not damage
    gaps = np.diff([image.stamp_ns for image in images])
    assert (gaps > 0).all() and np.ptp(gaps) <= 1


@pytest.mark.parametrize(("degrees", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_a_telephone_that_was_held_upright(tmp_path, degrees, matrix):
    path = opencv_video(tmp_path / "a.mp4", "mp4v", 2)
    a, b, c, d = (65536 * value for value in matrix)
    at = path.read_bytes().index(b"tkhd") + 4 + 40
    overwritten(path, at, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    images, _, _ = replayed(path)
    wanted = np.rot90(picture(0, SIZE), -degrees // 90)
    assert images[0].image.shape == wanted.shape
    assert np.abs(images[0].image.astype(int) - wanted).mean() < 6


def made(path, codec, options=None):
    """OpenCV makes the AVI of a simple camera."""
    return opencv_video(path, "MJPG") if codec == "mjpeg" else video(path, codec, options=options)


@pytest.mark.parametrize(("codec", "name"), [("mjpeg", "a.avi"), ("libvpx", "a.webm"), ("libx264", "a.mkv")])
def test_a_video_that_is_cut_off_says_so(tmp_path, codec, name):
    path = made(tmp_path / name, codec, dict(cluster_time_limit="300"))
    position, _ = positions(path)[COUNT // 2]
    path.write_bytes(path.read_bytes()[:position])
    images, _, damage = replayed(path)
    assert 0 < len(images) <= COUNT // 2
    assert "ends early" in damage and "of 2.000 s" in damage


def test_a_video_whose_index_comes_first_and_whose_end_is_missing(tmp_path):
    path = video(tmp_path / "a.mp4", "mpeg4", options=dict(movflags="faststart"))
    position, _ = positions(path)[COUNT // 2]
    path.write_bytes(path.read_bytes()[:position])
    images, _, damage = replayed(path)
    assert which(images) == list(range(COUNT // 2)) and "ends early" in damage


def test_sound_that_lasts_longer_is_no_damage(tmp_path):
    images, skipped, damage = replayed(video(tmp_path / "a.mp4", "mpeg4", audio_s=5.0))
    assert len(images) == COUNT and not skipped and not damage


@pytest.mark.parametrize(("codec", "name"), [("mjpeg", "a.avi"), ("mpeg4", "a.mp4"), ("libx264", "a.mp4")])
def test_a_damaged_image_is_counted_and_the_others_are_used(tmp_path, codec, name):
    path = made(tmp_path / name, codec)
    position, size = positions(path)[8]
    images, skipped, damage = replayed(overwritten(path, position, bytes(size)))
    assert len(images) >= COUNT - 2 and len(images) + len(skipped) == COUNT and not damage
    assert all("of the video is damaged" in reason for reason in skipped)


@pytest.mark.parametrize("content", [b"", b"text", bytes(2000), b"RIFF\0\0\0\0AVI "])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "notes.txt"])
def test_what_is_no_video(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"neither a video that FFmpeg can read|has no video"):
        replayed(path)


def test_a_recording_of_a_telephone_that_died_names_what_is_missing(tmp_path):
    path = opencv_video(tmp_path / "a.mp4", "mp4v")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(ValueError, match="moov atom not found"):
        replayed(path)


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / "a.mka"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="has no video, but only audio"):
        replayed(tmp_path / "a.mka")


def test_a_codec_without_decoder_is_named(tmp_path):
    path = video(tmp_path / "a.mp4", "libx264")
    overwritten(path, path.read_bytes().rindex(b"avc1"), b"zzzz")
    with pytest.raises(ValueError, match=r"the video codec .*zzzz.* has no decoder here; convert it: ffmpeg"):
        replayed(path)


def test_a_playlist_opens_no_network(tmp_path):
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"a\.m3u8"):
        replayed(path)
