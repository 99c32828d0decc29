# SPDX-License-Identifier: Apache-2.0
"""mcap files of any writer: with and without chunks, summary and end, and with other tools' channels."""

import random
import struct

import pytest
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType
from support.recordings import write_mcap
from support.storages import IMAGE, TOPIC, seconds

from xsvggt_ros.messages.storage import mcap_part
from xsvggt_ros.messages.storage.mcap_part import MAGIC, McapPart

COUNT = 40
LAYOUTS = {
    "chunks": {"chunk_size": 60_000},
    "one chunk": {"chunk_size": 10_000_000},
    "no chunks": {"use_chunking": False},
    "no message indexes": {"chunk_size": 60_000, "index_types": IndexType.CHUNK},
    "no chunk indexes": {"chunk_size": 60_000, "index_types": IndexType.MESSAGE},
    "no index": {"chunk_size": 60_000, "index_types": IndexType.NONE},
    "no statistics": {"chunk_size": 60_000, "use_statistics": False},
    "no channels at the end": {"chunk_size": 60_000, "repeat_channels": False},
    "no schemas at the end": {"chunk_size": 60_000, "repeat_schemas": False},
}


@pytest.mark.parametrize("compression", CompressionType)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_whole(tmp_path, layout, compression):
    path = write_mcap(tmp_path / "a.mcap", range(COUNT), compression=compression, **LAYOUTS[layout])
    part = McapPart(path)
    assert part.topics == {TOPIC: IMAGE} and part.counts == {TOPIC: COUNT}
    assert seconds(part) == (list(range(COUNT)), "")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_time_as_mcap_has_it(tmp_path, layout):
    times = list(range(COUNT)) + list(range(5))  # some of them the same
    random.Random(0).shuffle(times)
    path = write_mcap(tmp_path / "a.mcap", times, **LAYOUTS[layout])
    with write_mcap(tmp_path / "b.mcap", times).open("rb") as file:  # its reader does not know every layout
        expected = [message.data for _, _, message in make_reader(file).iter_messages()]
    assert [bytes(data) for _, data in McapPart(path).rows({TOPIC: IMAGE})] == expected


@pytest.mark.parametrize("times", [[0] * COUNT, [5] * (COUNT // 2) + [9] * (COUNT // 2), range(COUNT)])
@pytest.mark.parametrize("layout", ["chunks", "no chunks", "no index"])
def test_no_more_than_one_stretch_is_held(tmp_path, monkeypatch, layout, times):
    """A clock that stands still makes no difference."""
    read, messages = [], mcap_part._messages

    def counted(*args):
        for message in messages(*args):
            read.append(message[0])
            yield message

    monkeypatch.setattr(mcap_part, "_messages", counted)
    monkeypatch.setattr(mcap_part, "STRETCH", 60_000)
    part = McapPart(write_mcap(tmp_path / "a.mcap", times, **LAYOUTS[layout]))
    held = [len(read) - given for given, _ in enumerate(part.rows({TOPIC: IMAGE}))]
    assert len(held) == COUNT and max(held) <= 8  # pictures of 9 kB


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "foreign",
    [
        ("Pose", "jsonschema", "json"),
        ("foxglove.Pose", "protobuf", "protobuf"),
        ("std_msgs/String", "ros1msg", "ros1"),
        ("a::B", "omgidl", "cdr"),
        ("", "", "json"),
    ],
)
def test_channels_of_other_tools_are_left_out(tmp_path, layout, foreign):
    part = McapPart(write_mcap(tmp_path / "a.mcap", range(COUNT), foreign, **LAYOUTS[layout]))
    assert seconds(part) == (list(range(COUNT)), "") and part.counts[TOPIC] == COUNT
    assert ("/other" in part.foreign) == (foreign[2] != "cdr") != ("/other" in part.topics)


@pytest.mark.parametrize(
    "kind", ["sensor_msgs/Image", "sensor_msgs::msg::Image", "sensor_msgs::msg::dds_::Image_", "sensor_msgs/msg/Image"]
)
def test_names_of_a_type(tmp_path, kind):
    part = McapPart(write_mcap(tmp_path / "a.mcap", range(3), kind=kind))
    assert part.topics == {TOPIC: IMAGE} and seconds(part)[0] == [0, 1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", CompressionType)
@pytest.mark.parametrize("keep", [0.3, 0.55, 0.8, 0.99])
def test_cut_off(tmp_path, layout, compression, keep):
    """Within a chunk too; only what was compressed together is lost."""
    path = write_mcap(tmp_path / "a.mcap", range(COUNT), compression=compression, **LAYOUTS[layout])
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    part = McapPart(path)
    found, damage = seconds(part)
    assert found == list(range(len(found))) and part.counts[TOPIC] == len(found)
    assert keep * COUNT - 16 < len(found) < COUNT or keep == 0.99
    assert damage


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\0" * 3, MAGIC, b"appended"])
@pytest.mark.parametrize("closed", [False, True])
def test_bytes_behind_the_end(tmp_path, tail, closed):
    """Zeros are what a file system leaves after a power cut."""
    path = write_mcap(tmp_path / "a.mcap", range(COUNT), use_chunking=False)
    data = path.read_bytes()
    path.write_bytes((data if closed else data[: int(0.8 * len(data))]) + tail)
    found, damage = seconds(McapPart(path))
    assert found == list(range(len(found))) and len(found) > 0.75 * COUNT
    assert bool(damage) == (not closed)


@pytest.mark.parametrize("compression", CompressionType)
@pytest.mark.parametrize("layout", ["chunks", "no chunk indexes"])
def test_damaged_chunk_is_left_out_and_named(tmp_path, layout, compression):
    path = write_mcap(tmp_path / "a.mcap", range(COUNT), compression=compression, **LAYOUTS[layout])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(255 - value for value in data[middle : middle + 8])
    path.write_bytes(data)
    part = McapPart(path)
    found, damage = seconds(part)
    lost = sorted(set(range(COUNT)) - set(found))
    assert found == sorted(found) and 1 <= len(lost) <= 8 and lost == list(range(lost[0], lost[-1] + 1))
    assert "from byte" in damage
    assert part.counts[TOPIC] == COUNT


def test_without_messages(tmp_path):
    part = McapPart(write_mcap(tmp_path / "a.mcap", []))
    assert part.counts[TOPIC] == 0 and seconds(part) == ([], "")


def chunk_indexes(data):
    """Where the content of each lies in a file: behind its opcode and length."""
    position = struct.unpack_from("<Q", data, len(data) - 28)[0]
    while data[position] != 2:  # the footer's
        opcode, length = struct.unpack_from("<BQ", data, position)
        if opcode == 8:
            yield position + 9
        position += 9 + length


FIELDS = {"first time": 0, "offset": 16, "length": 24, "an indexed channel": 36}  # -> byte of a chunk index


@pytest.mark.parametrize("value", [0, 1, 0x0FFF, 2**15, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", FIELDS)
def test_wrong_index_costs_no_message(tmp_path, field, value):
    path = write_mcap(tmp_path / "a.mcap", range(COUNT), chunk_size=60_000)
    data = bytearray(path.read_bytes())
    position = list(chunk_indexes(data))[2]
    form, value = ("<H", value % 2**16) if "channel" in field else ("<Q", value)
    struct.pack_into(form, data, position + FIELDS[field], value)
    path.write_bytes(data)
    part = McapPart(path)
    assert seconds(part) == (list(range(COUNT)), "") and part.counts[TOPIC] == COUNT


@pytest.mark.parametrize("value", [0, 1, 10**4, 2**40, 2**63, 2**64 - 1])
def test_wrong_start_of_the_summary_costs_no_message(tmp_path, value):
    path = write_mcap(tmp_path / "a.mcap", range(COUNT), chunk_size=60_000)
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, len(data) - 28, value)
    path.write_bytes(data)
    assert seconds(McapPart(path)) == (list(range(COUNT)), "")
