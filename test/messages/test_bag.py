# SPDX-License-Identifier: Apache-2.0
"""Bags that a recorder did not finish, and bags that are none."""

import random
import shutil
from contextlib import suppress

import pytest
from support.recordings import SECOND, image_bag, picture, raw_image, write_bag

from xsvggt_ros.messages.bag import DamagedBag, is_bag, open_bag

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
