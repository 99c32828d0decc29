# SPDX-License-Identifier: Apache-2.0
"""Bags that a recorder did not finish, whose metadata.yaml says something else, and bags that are none."""

import os
import random
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from rosbags.rosbag2.enums import CompressionMode
from support.recordings import SECOND, image_bag, picture, raw_image, write_bag, write_mcap

from xsvggt_ros.messages.bag import DamagedBag, bags_below, is_bag, open_bag

TOPIC = "/cam/image_raw"
COUNT = 200  # 9 kB each: more than one mcap chunk of 1 MB


def stamps(bag):
    """Seconds of the images that can be read, and what the bag says about its end."""
    found = []
    try:
        for topic, message in bag.messages([TOPIC]):
            found.append(bag.decode(topic, message).header.stamp.sec)
    except DamagedBag as error:
        return found, str(error)
    return found, ""


@pytest.fixture(scope="module", params=["mcap", "db3"])
def recording(request, tmp_path_factory):
    return image_bag(tmp_path_factory.mktemp("recording") / "bag", COUNT, request.param)


@pytest.fixture
def copy(recording, tmp_path):
    return shutil.copytree(recording, tmp_path / "bag")


def storage_file(bag):
    return next(file for file in bag.iterdir() if file.suffix != ".yaml")


def test_whole(copy):
    with open_bag(copy) as bag:
        assert bag.topics == {TOPIC: "sensor_msgs/msg/Image"} and bag.counts == {TOPIC: COUNT}
        assert stamps(bag) == (list(range(COUNT)), "")


def test_recorder_killed_before_it_wrote_the_metadata(copy):
    (copy / "metadata.yaml").unlink()
    assert is_bag(copy)
    with open_bag(copy) as bag:
        found, damage = stamps(bag)
    assert found == list(range(COUNT)) and "metadata" in damage


@pytest.mark.parametrize("keep", [0.65, 0.9, 0.999])
@pytest.mark.parametrize("alone", [False, True])
def test_cut_off(copy, keep, alone):
    file = storage_file(copy)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with open_bag(file if alone else copy) as bag:
        found, damage = stamps(bag)
    # Nothing is lost but the end; an mcap chunk is 1 MB of it.
    assert found == list(range(len(found)))
    assert keep * COUNT - 115 < len(found) <= COUNT
    assert "damaged" in damage or "incomplete" in damage


def test_cut_off_before_the_first_message(copy):
    file = storage_file(copy)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a rosbag2"), open_bag(copy):
        pass


@pytest.mark.parametrize("suffix", ["mcap", "db3"])
@pytest.mark.parametrize("content", [b"", b"not a bag" * 1000])
def test_no_bag(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a rosbag2"), open_bag(path):
        pass


@pytest.mark.parametrize("metadata", ["", "a: [", "rosbag2_bagfile_information: {version: 5}", "- 1"])
def test_bad_metadata(copy, metadata):
    (copy / "metadata.yaml").write_text(metadata)
    with open_bag(copy) as bag:
        found, damage = stamps(bag)
    assert found == list(range(COUNT)) and "incomplete" in damage


def test_metadata_alone(copy):
    storage_file(copy).unlink()
    with pytest.raises(ValueError, match="cannot be read as a rosbag2"), open_bag(copy):
        pass


@pytest.mark.parametrize("seed", range(40))
def test_overwritten_bytes_are_told_not_raised(copy, seed):
    file = storage_file(copy)
    data = bytearray(file.read_bytes())
    rng = random.Random(seed)
    at = rng.choice([rng.randrange(len(data)), rng.randrange(2000), len(data) - 1 - rng.randrange(2000)])
    length = rng.choice([1, 100, 10_000])
    data[at : at + length] = rng.randbytes(min(length, len(data) - at))
    file.write_bytes(data)
    with suppress(ValueError), open_bag(copy) as bag:
        stamps(bag)


@pytest.mark.parametrize("storage", ["mcap", "db3"])
def test_parts_of_a_split_bag_in_order(tmp_path, storage):
    split = tmp_path / "split"
    split.mkdir()
    for part in (2, 10):
        messages = [(TOPIC, part * SECOND, raw_image(picture(0), part * SECOND))]
        whole = write_bag(tmp_path / f"split_{part}", messages, storage)
        storage_file(whole).rename(split / f"split_{part}.{storage}")
    with open_bag(split) as bag:
        assert stamps(bag)[0] == [2, 10]


def test_message_of_another_type_is_refused(copy):
    with open_bag(copy) as bag, pytest.raises(ValueError, match="cannot be decoded"):
        bag.decode(TOPIC, b"\0\1\0\0short")


EDITS = {
    "QoS emptied": (r"offered_qos_profiles:.*?(?=\n +serialization_format)", 'offered_qos_profiles: ""'),
    "type hash": (r"RIHS01_[0-9a-f]{64}", "RIHS01_" + "0" * 64),
    "type": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "storage": (r"storage_identifier: \w+", "storage_identifier: other"),
    "version": (r"version: \d+", "version: 99"),
    "encoding": ("serialization_format: cdr", "serialization_format: other"),
    "compression": (r"compression_mode: .*", "compression_mode: FILE"),
    "folder of the recording's machine": (r"- (bag\.\w+)", r"- /home/robot/bags/bag/\1"),
    "a Windows one": (r"- (bag\.\w+)", r"- 'C:\\bags\\bag\\\1'"),
    "fewer messages": (r"message_count: \d+", "message_count: 3"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_metadata_that_differs_from_the_storage_does_no_harm(copy, edit):
    metadata = copy / "metadata.yaml"
    before = metadata.read_text()
    metadata.write_text(re.sub(*EDITS[edit], before, flags=re.S if edit == "QoS emptied" else 0))
    assert metadata.read_text() != before
    with open_bag(copy) as bag:
        assert bag.topics == {TOPIC: "sensor_msgs/msg/Image"}
        assert stamps(bag) == (list(range(COUNT)), "")


def test_fewer_messages_than_stated(copy):
    metadata = copy / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace(f"message_count: {COUNT}", f"message_count: {COUNT + 7}"))
    with open_bag(copy) as bag:
        found, damage = stamps(bag)
    assert found == list(range(COUNT)) and f"{COUNT} of {COUNT + 7} messages of {TOPIC} are there" in damage


def test_renamed_storage(copy):
    file = storage_file(copy)
    file.rename(copy / f"new name{file.suffix.upper()}")
    with open_bag(copy) as bag:
        found, damage = stamps(bag)
    assert found == list(range(COUNT)) and f"{file.name} is missing" in damage


@pytest.mark.parametrize("name", ["a?b", "a#b", "100%41", "a b", "é", "\udcff", "a'b\"c", "file:x"])
@pytest.mark.parametrize("alone", [False, True])
def test_names(copy, tmp_path, name, alone):
    file = storage_file(copy)
    folder = copy.rename(tmp_path / name)
    renamed = (folder / file.name).rename(folder / f"{name}{file.suffix}")
    (folder / "metadata.yaml").unlink()
    with open_bag(renamed if alone else folder) as bag:
        assert stamps(bag)[0] == list(range(COUNT))


@pytest.mark.parametrize("name", ["A.MCAP", "a.DB3", "a", "a.bin", "a.mcap.part"])
def test_storage_is_known_by_its_content(recording, tmp_path, name):
    path = shutil.copy(storage_file(recording), tmp_path / name)
    assert is_bag(path)
    with open_bag(path) as bag:
        assert stamps(bag) == (list(range(COUNT)), "")


def split_bag(folder, parts, storage, compression=()):
    """Parts of 3 images, of which the named ones are compressed as files or message by message; without metadata."""
    folder.mkdir()
    for part in range(parts):
        mode = dict(compression).get(part)
        images = [(TOPIC, i * SECOND, raw_image(picture(i), i * SECOND)) for i in range(3 * part, 3 * part + 3)]
        whole = write_bag(folder.parent / f"part{part}", images, storage, mode)
        file = storage_file(whole)
        file.rename(folder / file.name.replace(f"part{part}", f"bag_{part}"))
    return folder


@pytest.mark.parametrize("storage", ["mcap", "db3"])
@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_parts_without_metadata(tmp_path, monkeypatch, storage, mode):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bag = split_bag(tmp_path / "bag", 4, storage, {0: mode, 2: mode})
    before = sorted(tmp_path.iterdir())
    with open_bag(bag) as opened:
        assert stamps(opened)[0] == list(range(12))
    assert sorted(tmp_path.iterdir()) == before  # nothing unpacked is left


@pytest.mark.parametrize("suffix", [".zstd", ".zst", ".ZSTD"])
def test_compressed_file_alone(recording, tmp_path, suffix):
    file = storage_file(recording)
    path = tmp_path / f"{file.name}{suffix}"
    path.write_bytes(zstandard.compress(file.read_bytes()))
    with open_bag(path) as bag:
        assert stamps(bag) == (list(range(COUNT)), "")


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_compressed_file_that_is_cut_off(recording, tmp_path, keep):
    file = storage_file(recording)
    path = tmp_path / f"{file.name}.zstd"
    packed = zstandard.ZstdCompressor(level=-100).compress(file.read_bytes())
    path.write_bytes(packed[: int(keep * len(packed))])
    with open_bag(path) as bag:
        found, damage = stamps(bag)
    assert found == list(range(len(found))) and len(found) > 10 and damage


def test_part_is_read_once_though_its_packed_twin_is_there(copy):
    file = storage_file(copy)
    copy.joinpath(f"{file.name}.zstd").write_bytes(b"what a killed recorder began")
    with open_bag(copy) as bag:
        assert stamps(bag) == (list(range(COUNT)), "")


@pytest.mark.parametrize("storage", ["mcap", "db3"])
@pytest.mark.parametrize("listed", [[10, 2, 0, 1], [0, 1, 2]])
def test_parts_in_natural_order_whatever_metadata_lists(tmp_path, storage, listed):
    bag = split_bag(tmp_path / "bag", 12, storage)
    for part in range(12):
        if part not in (0, 1, 2, 10):
            (bag / f"bag_{part}.{storage}").unlink()
    paths = "".join(f"\n  - bag_{part}.{storage}" for part in listed)
    text = f"rosbag2_bagfile_information:\n  relative_file_paths:{paths}\n  topics_with_message_count: []\n"
    (bag / "metadata.yaml").write_text(text)
    with open_bag(bag) as opened:
        assert stamps(opened) == ([*range(9), 30, 31, 32], "")


@pytest.mark.parametrize("storage", ["mcap", "db3"])
@pytest.mark.parametrize("damage", ["empty", "text", "gone", "a link to nothing"])
def test_one_part_that_cannot_be_read_is_named(tmp_path, storage, damage):
    bag = split_bag(tmp_path / "bag", 3, storage)
    names = "".join(f"\n  - bag_{part}.{storage}" for part in range(3))
    text = f"rosbag2_bagfile_information:\n  relative_file_paths:{names}\n  topics_with_message_count: []\n"
    (bag / "metadata.yaml").write_text(text)
    part = bag / f"bag_1.{storage}"
    part.unlink()
    if damage in ("empty", "text"):
        part.write_text("" if damage == "empty" else "no bag")
    elif damage != "gone":
        part.symlink_to("nothing")
    with open_bag(bag) as opened:
        found, said = stamps(opened)
    assert found == [0, 1, 2, 6, 7, 8] and part.name in said


def test_other_files_in_the_folder(copy, tmp_path):
    file = storage_file(copy)
    (copy / f"._{file.name}").write_bytes(b"of a Mac")
    (copy / "folder.mcap").mkdir()
    write_mcap(copy / "excerpt.mcap", range(5))
    with open_bag(copy) as bag:
        found, damage = stamps(bag)
    assert found == list(range(COUNT)) and "excerpt.mcap is left out" in damage and "._" not in damage
    assert bags_below(tmp_path) == [copy]


def test_folder_of_both_storages(tmp_path):
    for storage in ("mcap", "db3"):
        storage_file(image_bag(tmp_path / storage, 1, storage)).rename(tmp_path / f"a.{storage}")
    with pytest.raises(ValueError, match=r"several recordings, give one of them: a\.db3, a\.mcap$"), open_bag(tmp_path):
        pass


@pytest.mark.parametrize("name", ["a.bag", "a.bag.active", "a b"])
def test_ros_1_bag_says_how_to_convert_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"#ROSBAG V2.0\n" + bytes(100))
    assert is_bag(path)
    with pytest.raises(ValueError, match="is a ROS 1 bag: convert it with rosbags-convert --src "), open_bag(path):
        pass


def test_without_room_to_unpack(tmp_path, monkeypatch):
    path = tmp_path / "a.mcap.zstd"
    path.write_bytes(zstandard.compress(b""))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="set TMPDIR to a folder with room"), open_bag(path):
        pass


def test_type_that_nobody_knows(tmp_path):
    path = write_mcap(tmp_path / "a.mcap", [1], kind="a/msg/B")
    with open_bag(path) as bag, pytest.raises(ValueError, match="unknown type a/msg/B"):
        bag.decode(TOPIC, b"\0\1\0\0")


def test_no_file_stays_open(tmp_path):
    """A bag has thousands of parts, a process some thousand files."""
    bag = split_bag(tmp_path / "bag", 3, "mcap")
    with open_bag(bag) as opened:
        next(messages := opened.messages([TOPIC]))
        open_files = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()}
        assert len([name for name in open_files if name.startswith(str(bag))]) <= 1
        messages.close()
