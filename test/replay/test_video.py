# SPDX-License-Identifier: Apache-2.0
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from support.recordings import SECOND, encoded, picture

from xsvggt_ros.replay.sources import Images, Reading, open_source, usable, video

COUNT = 20
RATE = 10


def read(path, **options):
    """All images of a video; its source and what is said of images that cannot be used, after its end."""
    with open_source(path, Reading(**options)) as source:
        images = Images(source)
        return list(images), source, images.skipped


def indices(images):
    """Which pictures these are: the blue channel says it, also after a lossy codec."""
    return [round(float(np.median(item.image[..., 2])) / 10) for item in images]


def times(images):
    return [round(item.stamp_ns / SECOND, 2) for item in images]


def every_tenth(count=COUNT):
    return [round(i / RATE, 2) for i in range(count)]


def opencv_video(path, codec, count=COUNT):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, (64, 48))
    for i in range(count):
        writer.write(cv2.cvtColor(picture(i), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def sound(container, seconds):
    """A new stream and its frames."""
    stream = container.add_stream("libopus" if container.format.name == "matroska" else "aac", rate=48000)

    def frames():
        for start in range(0, seconds * 48000, 960):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 960), np.float32), "fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            yield frame

    return stream, frames()


def pictures(container, codec, order=range(COUNT), ticks=None, options=None, pixels="yuv420p", full_range=False):
    """A new stream and its frames: pictures of these indices, the i-th at ticks[i] ms, by default at RATE."""
    stream = container.add_stream(codec, rate=RATE, options=options or {})
    stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
    stream.codec_context.time_base = Fraction(1, 1000 if ticks else RATE)
    colours = ColorRange.JPEG if full_range else ColorRange.UNSPECIFIED
    stream.codec_context.color_range = colours
    stream.bit_rate = 4_000_000  # every picture keeps its colour

    def frames():
        for i, index in enumerate(order):
            frame = av.VideoFrame.from_ndarray(picture(index)).reformat(format=pixels, dst_color_range=colours)
            frame.pts, frame.time_base = ticks[i] if ticks else i, stream.codec_context.time_base
            yield frame

    return stream, frames()


def write(container, *streams):
    for stream, frames in streams:
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))


def libav_video(path, codec, *, seconds_of_sound=0, mux=None, **options):
    with av.open(str(path), "w", options=mux or {}) as container:
        streams = [pictures(container, codec, **options)]
        if seconds_of_sound:
            streams.append(sound(container, seconds_of_sound))
        write(container, *streams)
    return path


def change(path, **bytes_of):
    """Overwrites what follows a box's name: name=(offset behind the name, new bytes)."""
    data = bytearray(path.read_bytes())
    for name, (offset, new) in bytes_of.items():
        at = data.rindex(name.encode()) + len(name) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def cut(path, part):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def second_half(path, index):
    """Where that of an image's data begins and ends in the file."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][index]
        return packet.pos + packet.size // 2, packet.pos + packet.size


def damage_packet(path, index):
    """Zeros in place of the second half of a packet."""
    start, end = second_half(path, index)
    data = bytearray(path.read_bytes())
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return path


WHOLE = {
    "mp4v.mp4": lambda path: opencv_video(path, "mp4v"),
    "mjpeg.avi": lambda path: opencv_video(path, "MJPG"),
    "xvid.avi": lambda path: opencv_video(path, "XVID"),
    "mjpeg.mkv": lambda path: opencv_video(path, "MJPG"),
    "b_frames.mp4": lambda path: libav_video(path, "libx264", options={"bf": "3"}),
    "b_frames.avi": lambda path: libav_video(path, "libx264", options={"bf": "3"}),  # AVI knows times of decoding only
    "b_frames.ts": lambda path: libav_video(path, "libx264", options={"bf": "3"}),
    "bare.h264": lambda path: libav_video(path, "libx264", options={"bf": "3"}),  # no time at all
    "index_first.mp4": lambda path: libav_video(path, "libx264", mux={"movflags": "faststart"}),
    "fragments.mp4": lambda path: libav_video(path, "libx264", mux={"movflags": "frag_keyframe+empty_moov"}),
    "vp9.webm": lambda path: libav_video(path, "libvpx-vp9"),
    "flash.flv": lambda path: libav_video(path, "libx264"),
    "windows.wmv": lambda path: libav_video(path, "wmv2"),
    "longer_sound.mp4": lambda path: libav_video(path, "libx264", seconds_of_sound=4),
    "longer_sound.mkv": lambda path: libav_video(path, "libx264", seconds_of_sound=4),
    "longer_sound.avi": lambda path: libav_video(path, "mpeg4", seconds_of_sound=4, options={"bf": "0"}),
    "a:b%03d?#.mp4": lambda path: opencv_video(path, "mp4v"),
}


class TestWhole:
    @pytest.mark.parametrize("name", WHOLE)
    def test_every_image_with_its_time_and_no_complaint(self, tmp_path, name):
        path = WHOLE[name](tmp_path / name)
        images, source, skipped = read(path)
        assert indices(images) == list(range(COUNT))
        assert not source.damage and not skipped
        if name != "longer_sound.avi":  # libav's writer leaves its second slot empty
            assert times(images) == every_tenth()

    @pytest.mark.parametrize("name", ["mp4v.mp4", "mjpeg.avi"])
    def test_pixels_are_those_of_opencv(self, tmp_path, name):
        path = WHOLE[name](tmp_path / name)
        capture = cv2.VideoCapture(str(path))
        for item in read(path)[0]:
            bgr = capture.read()[1].astype(int)
            assert np.abs(item.image[..., ::-1] - bgr).max() <= 2

    @pytest.mark.parametrize(("pixels", "full_range"), [("yuv420p10le", False), ("yuv420p", True), ("yuv444p", False)])
    def test_depth_and_range_of_the_colours(self, tmp_path, pixels, full_range):
        path = libav_video(tmp_path / "a.mp4", "libx264", pixels=pixels, full_range=full_range, options={"crf": "1"})
        for i, item in enumerate(read(path)[0]):
            assert np.abs(item.image.astype(int) - picture(i)).mean() < 3

    def test_same_bytes_again(self, tmp_path):
        path = libav_video(tmp_path / "a.mp4", "libx264")
        first, second = read(path)[0], read(path)[0]
        assert [item.image.tobytes() for item in first] == [item.image.tobytes() for item in second]

    def test_beside_the_libav_of_opencv(self, tmp_path):
        path = WHOLE["b_frames.mp4"](tmp_path / "a.mp4")
        capture = cv2.VideoCapture(str(path))
        with open_source(path) as source:
            for image in Images(source):
                assert np.abs(image.image[..., ::-1] - capture.read()[1].astype(int)).max() <= 2

    def test_loaded_for_videos_only(self):
        command = "import sys, xsvggt_ros.replay.command; sys.exit('av' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", command]).returncode == 0

    def test_foreign_letters_in_the_title(self, tmp_path):
        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "Kueche"
            write(container, pictures(container, "libx264"))
        path.write_bytes(path.read_bytes().replace(b"Kueche", b"K\xfcche "))
        assert len(read(path)[0]) == COUNT


UNEVEN = [i * 100 + (700 if i >= 5 else 0) for i in range(COUNT)]  # ms


class TestStamps:
    @pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
    def test_variable_rate(self, tmp_path, name):
        codec = "mpeg4" if name == "a.avi" else "libx264"  # the AVI states 2700 images: so many slots are empty
        images, source, _ = read(libav_video(tmp_path / name, codec, ticks=UNEVEN))
        assert times(images) == [tick / 1000 for tick in UNEVEN]
        assert len(images) == COUNT and not source.damage

    def test_variable_rate_as_phones_record_it(self, tmp_path):
        """Each image of the MP4 is given its own duration in the stts box, which then moves behind the others."""
        path = opencv_video(tmp_path / "a.mp4", "mp4v")
        data = bytearray(path.read_bytes())
        scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
        runs = [scale if 5 <= i < 10 else scale // 10 for i in range(COUNT)]
        new = struct.pack(">4sII", b"stts", 0, COUNT) + b"".join(struct.pack(">II", 1, run) for run in runs)
        at = data.index(b"stts") - 4
        old = struct.unpack_from(">I", data, at)[0]
        data[at : at + old] = struct.pack(">I", 4 + len(new)) + new
        for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            box = data.index(name) - 4
            struct.pack_into(">I", data, box, struct.unpack_from(">I", data, box)[0] + 4 + len(new) - old)
        path.write_bytes(data.replace(b"edts", b"free"))
        change(path, mdhd=(16, struct.pack(">I", sum(runs))))
        images, source, _ = read(path)
        expected = np.cumsum([0, *runs[:-1]]) / scale
        np.testing.assert_allclose([item.stamp_ns / SECOND for item in images], expected, atol=1e-3)
        assert not source.damage

    def test_rate_and_stride(self, tmp_path):
        path = opencv_video(tmp_path / "a.avi", "MJPG", 8)
        images, source, _ = read(path, rate=5.0, stride=3)
        assert [item.stamp_ns for item in images] == [0, 3 * SECOND // 5, 6 * SECOND // 5]
        assert indices(images) == [0, 3, 6] and source.length == 3
        assert times(read(path, stride=3)[0]) == [0, 0.3, 0.6]

    def test_rate_overrides_the_files_times(self, tmp_path):
        path = libav_video(tmp_path / "a.mkv", "libx264", ticks=UNEVEN)
        assert times(read(path, rate=4.0)[0]) == [i / 4 for i in range(COUNT)]

    def test_stride_converts_only_what_it_yields(self, tmp_path, monkeypatch):
        converted = []
        convert = video._video_image
        monkeypatch.setattr(video, "_video_image", lambda *a: (converted.append(a[1]), convert(*a))[1])
        read(opencv_video(tmp_path / "a.mp4", "mp4v"), stride=10)
        assert converted == ["image 0 of the video", "image 10 of the video"]

    def test_begins_at_zero_wherever_the_file_begins(self, tmp_path):
        path = libav_video(tmp_path / "a.mkv", "libx264", ticks=[3_600_000 + i * 100 for i in range(COUNT)])
        assert times(read(path)[0]) == every_tenth()

    def test_times_that_are_missing_or_stand_still_go_on(self):
        clock = video._Clock(Path("a"), SimpleNamespace(guessed_rate=RATE, time_base=Fraction(1, RATE)), rate=None)
        stamps = [clock.stamp(i, time) for i, time in enumerate([7, 8, 8, 8, 11, None, 13, 3, 15])]
        assert stamps == [i * SECOND // RATE for i in range(9)]

    def test_neither_times_nor_a_rate(self):
        unknown = SimpleNamespace(guessed_rate=None, average_rate=None, time_base=Fraction(1, RATE))
        with pytest.raises(ValueError, match="how many images a second it has: give the rate"):
            video._Clock(Path("a"), unknown, rate=None).stamp(0, None)
        assert video._Clock(Path("a"), unknown, rate=4.0).stamp(2, None) == SECOND // 2


@pytest.mark.parametrize(("angle", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_rotated_video_is_upright(tmp_path, angle, matrix):
    a, b, c, d = (entry << 16 for entry in matrix)
    path = opencv_video(tmp_path / "a.mp4", "mp4v")
    lying = read(path)[0][0].image
    change(path, tkhd=(40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)))
    upright = read(path)[0][0].image
    np.testing.assert_array_equal(upright, np.rot90(lying, -angle // 90))
    np.testing.assert_array_equal(upright[..., ::-1], cv2.VideoCapture(str(path)).read()[1])


class TestCut:
    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("mjpeg.avi", 0.6),
            ("mjpeg.mkv", 0.6),
            ("vp9.webm", 0.6),
            ("longer_sound.mkv", 0.6),
            ("index_first.mp4", 0.8),
            ("flash.flv", 0.9),
        ],
    )
    def test_said_and_the_images_before_are_used(self, tmp_path, name, part):
        path = cut(WHOLE[name](tmp_path / name), part)
        images, source, _ = read(path)
        assert 0 < len(images) < COUNT and indices(images) == sorted({*indices(images)})
        assert f"{name} breaks off at " in source.damage and " images" in source.damage

    def test_half_an_image_is_not_used(self, tmp_path):
        path = WHOLE["mjpeg.avi"](tmp_path / "a.avi")
        path.write_bytes(path.read_bytes()[: second_half(path, 12)[0]])
        images, source, skipped = read(path)
        assert indices(images) == list(range(12)) and len(skipped) == 1
        assert skipped[0].startswith("image 12 of the video ")
        assert "breaks off at 1.30 s of 2.00 s, after 13 images" in source.damage

    def test_index_that_would_have_come_last(self, tmp_path):
        path = cut(WHOLE["mp4v.mp4"](tmp_path / "a.mp4"), 0.6)
        with pytest.raises(ValueError, match=r"index \(moov\) is missing or damaged.*untrunc$"):
            read(path)

    def test_before_the_first_image(self, tmp_path):
        path = WHOLE["vp9.webm"](tmp_path / "a.webm")
        path.write_bytes(path.read_bytes()[: second_half(path, 0)[0]])
        with open_source(path) as source, pytest.raises(ValueError, match=r"no image that can be used: .*breaks off"):
            usable(source, path)

    def test_what_an_edit_list_leaves_out_is_not_missing(self, tmp_path):
        """The first half second only is shown, as where a phone's video was trimmed: the count still states all."""
        path = change(WHOLE["mp4v.mp4"](tmp_path / "a.mp4"), elst=(8, struct.pack(">I", 500)))
        path = change(path, mvhd=(16, struct.pack(">I", 500)), tkhd=(20, struct.pack(">I", 500)))
        images, source, skipped = read(path)
        assert indices(images) == list(range(5)) and not source.damage and not skipped

    def test_reading_that_fails(self, tmp_path, monkeypatch):
        class Container:
            def demux(self, streams):
                raise av.error.OSError(5, "Input/output error")

        packets = video._packets
        monkeypatch.setattr(video, "_packets", lambda path, container, streams: packets(path, Container(), streams))
        _, source, _ = read(WHOLE["mp4v.mp4"](tmp_path / "a.mp4"))
        assert source.damage.endswith("a.mp4 cannot be read any further: Input/output error")


@pytest.mark.parametrize("name", ["mjpeg.avi", "xvid.avi", "mjpeg.mkv", "mp4v.mp4"])
def test_damaged_packet_is_one_image_less(tmp_path, name):
    images, source, skipped = read(damage_packet(WHOLE[name](tmp_path / name), 8))
    assert len(images) == COUNT - 1 and not source.damage
    assert len(skipped) == 1 and skipped[0].startswith("image 8 of the video ")
    assert times(images) == [time for time in every_tenth() if time != 0.8]


def test_damaged_packet_that_the_stride_leaves_out(tmp_path):
    images, _, skipped = read(damage_packet(WHOLE["mjpeg.avi"](tmp_path / "a.avi"), 8), stride=3)
    assert times(images) == [0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8] and not skipped


def test_cut_program_stream_loses_its_last_image_only(tmp_path):
    """All of its images are in one part, and libav says of each that it comes from one that is not whole."""
    images, _, skipped = read(cut(libav_video(tmp_path / "a.mpg", "mpeg2video"), 0.4))
    assert len(images) == 12 and len(skipped) == 1


class TestRefused:
    def refusal(self, path):
        with pytest.raises(ValueError) as error:
            read(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_codec_without_decoder(self, tmp_path):
        path = opencv_video(tmp_path / "a.mp4", "mp4v")
        path.write_bytes(path.read_bytes().replace(b"mp4v", b"evc1").replace(b"esds", b"free"))
        assert self.refusal(path).endswith(
            "is coded as evc (evc1 / 0x31637665), which PyAV cannot decode here: "
            "convert it with ffmpeg -i a.mp4 -c:v libx264 converted.mp4"
        )

    def test_codec_that_nobody_knows(self, tmp_path):
        path = opencv_video(tmp_path / "a.mkv", "MJPG")
        path.write_bytes(path.read_bytes().replace(b"V_MJPEG", b"V_QWXYZ"))
        assert "is coded as something unknown, which" in self.refusal(path)

    def test_decoder_that_only_other_hardware_has(self, tmp_path, monkeypatch):
        """As libav's own of AV1: it opens, and then refuses every packet."""

        class Packet:
            def __init__(self, stream):
                self.stream, self.pts = stream, None

            def decode(self):
                raise av.error.NotImplementedError(38, "Function not implemented")

        monkeypatch.setattr(video, "_packets", lambda path, container, streams: iter([Packet(streams[0])]))
        assert "is coded as mpeg4, which PyAV cannot decode" in self.refusal(opencv_video(tmp_path / "a.mp4", "mp4v"))

    @pytest.mark.parametrize("name", ["a.mp4", "a.txt"])
    def test_text(self, tmp_path, name):
        (tmp_path / name).write_text("text\n" * 100)
        assert "is neither a video, nor a folder of images, nor a rosbag2: " in self.refusal(tmp_path / name)

    def test_empty(self, tmp_path):
        (tmp_path / "a.mp4").write_bytes(b"")
        assert "a.mp4 is empty: give a" in self.refusal(tmp_path / "a.mp4")

    def test_playlist_opens_no_network(self, tmp_path):
        path = tmp_path / "a.m3u8"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
        assert "a.m3u8" in self.refusal(path)

    @pytest.mark.parametrize("cover", [False, True])
    def test_sound_only(self, tmp_path, cover):
        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as container:
            if cover:
                container.add_attachment("cover.png", "image/png", encoded(picture(0), ".png"))
            write(container, sound(container, 1))
        assert "has no video in it, only audio: give a" in self.refusal(path)


def test_cover_picture_is_not_the_video(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.add_attachment("cover.png", "image/png", encoded(picture(3), ".png"))
        write(container, pictures(container, "libx264"))
    images, source, _ = read(path)
    assert indices(images) == list(range(COUNT)) and not source.damage


def test_first_of_several_videos(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        write(container, pictures(container, "libx264"), pictures(container, "libx264", range(COUNT)[::-1]))
    images, source, skipped = read(path)
    assert indices(images) == list(range(COUNT)) and not source.damage and not skipped
