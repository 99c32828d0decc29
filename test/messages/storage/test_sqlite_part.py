# SPDX-License-Identifier: Apache-2.0
"""sqlite3 databases as recorders leave them: closed, killed, cut off, and with what other tools put into them."""

import shutil
import sqlite3
from contextlib import ExitStack, closing

import pytest
from support.recordings import SECOND, TYPES, image_bag, picture, raw_image
from support.storages import IMAGE, TOPIC, seconds

from xsvggt_ros.messages.storage import open_part
from xsvggt_ros.messages.storage.part import DamagedPart

COUNT = 40
SCHEMA = """
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT NOT NULL,
    offered_qos_profiles TEXT NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,
    data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
INSERT INTO topics VALUES (1, '/cam/image_raw', 'sensor_msgs/msg/Image', 'cdr', '');
"""


def seconds_in(path):
    """The same of a file."""
    with ExitStack() as stack:
        return seconds(open_part(path, stack))


def insert(database, indices):
    for i in indices:
        data = TYPES.serialize_cdr(raw_image(picture(i), i * SECOND), IMAGE)
        database.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)", (i * SECOND, bytes(data)))


def contents(folder):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


@pytest.fixture
def database(tmp_path):
    """A recorder's, in a folder of its own."""
    (tmp_path / "live").mkdir()
    with closing(sqlite3.connect(tmp_path / "live" / "a.db3", isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def path(tmp_path):
    """A closed one."""
    return image_bag(tmp_path / "bag", COUNT, "db3") / "bag.db3"


def change(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("checkpointed", [0, 5, COUNT])
@pytest.mark.parametrize("shared_memory", [False, True])
def test_messages_in_the_log_of_a_killed_recorder(database, tmp_path, checkpointed, shared_memory):
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.executescript(SCHEMA)
    insert(database, range(checkpointed))
    if checkpointed:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    insert(database, range(checkpointed, COUNT))
    left = shutil.copytree(tmp_path / "live", tmp_path / "left")
    if not shared_memory:
        (left / "a.db3-shm").unlink()
    before = contents(left)
    assert seconds_in(left / "a.db3") == (list(range(COUNT)), "")
    assert contents(left) == before


def test_cut_off_log(database, tmp_path):
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.executescript(SCHEMA)
    insert(database, range(COUNT))
    left = shutil.copytree(tmp_path / "live", tmp_path / "left")
    log = left / "a.db3-wal"
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    found, _ = seconds_in(left / "a.db3")
    assert found == list(range(len(found))) and abs(len(found) - COUNT // 2) < 4


def test_killed_within_a_transaction(database, tmp_path):
    """Half of a transaction is in the database, and the journal takes it back."""
    database.executescript(SCHEMA)
    insert(database, range(10))
    database.execute("PRAGMA cache_size = 5")
    database.execute("BEGIN")
    database.execute("DELETE FROM messages WHERE id > 3")
    insert(database, range(20, COUNT))
    left = shutil.copytree(tmp_path / "live", tmp_path / "left")
    assert (left / "a.db3-journal").stat().st_size
    before = contents(left)
    assert seconds_in(left / "a.db3") == (list(range(10)), "")
    assert contents(left) == before


@pytest.mark.parametrize("index", ["", "DROP INDEX timestamp_idx"])
def test_order_of_time(path, index):
    change(path, index, "UPDATE messages SET timestamp = 100000000000 - timestamp WHERE id % 2 = 0")
    odd_ids = list(range(0, COUNT, 2))  # the first has the number 1
    assert seconds_in(path) == (odd_ids + list(range(COUNT - 1, 0, -2)), "")


def test_messages_of_other_encodings_are_left_out(path):
    change(
        path,
        "INSERT INTO topics SELECT 2, '/other', 'a/msg/B', 'protobuf', '', '' FROM topics",
        "INSERT INTO messages (topic_id, timestamp, data) VALUES (2, 5, x'00')",
    )
    with ExitStack() as stack:
        part = open_part(path, stack)
        assert part.topics == {TOPIC: IMAGE} and part.counts == {TOPIC: COUNT} and "/other" in part.foreign
    assert seconds_in(path) == (list(range(COUNT)), "")


@pytest.mark.parametrize("part", [0.3, 0.6])
def test_damage_in_the_middle_hides_what_lies_there(path, part):
    data = bytearray(path.read_bytes())
    at = int(part * len(data)) // 4096 * 4096
    data[at : at + 20_000] = b"\xff" * 20_000
    path.write_bytes(data)
    found, damage = seconds_in(path)
    assert found == sorted(found) and COUNT - 8 < len(found) < COUNT
    assert found[0] == 0 and found[-1] == COUNT - 1
    assert "malformed" in damage or "damaged" in damage


@pytest.mark.parametrize("value", ["NULL", "'text'", "7", "CAST(x'ff' AS TEXT)"])
def test_values_that_are_no_message(path, value):
    change(
        path,
        "CREATE TABLE copy(id INTEGER PRIMARY KEY, topic_id, timestamp, data)",
        "INSERT INTO copy SELECT * FROM messages",
        "DROP TABLE messages",
        "ALTER TABLE copy RENAME TO messages",
        f"UPDATE messages SET data = {value} WHERE id = 3",
        f"UPDATE messages SET timestamp = {value} WHERE id = 1",
        f"UPDATE messages SET topic_id = {value} WHERE id = 9",
    )
    found, _ = seconds_in(path)
    assert found == [i for i in range(COUNT) if i not in (2, 8)]


@pytest.mark.parametrize("statement", ["DROP TABLE topics", "DROP TABLE messages"])
def test_other_databases(path, statement):
    change(path, statement)
    if "topics" in statement:
        with pytest.raises(DamagedPart, match="no such table: topics"), ExitStack() as stack:
            open_part(path, stack)
    else:
        assert seconds_in(path) == ([], "no such table: messages")


@pytest.mark.parametrize("table", ["topics", "messages"])
@pytest.mark.parametrize("name", [b"\xffost", b"l\xc3st", b"los\xe2"])
def test_damaged_name_in_what_sqlite_says(path, table, name):
    change(path, f"DROP TABLE {table}", f"CREATE VIEW {table} AS SELECT * FROM lost")
    path.write_bytes(path.read_bytes().replace(b"FROM lost", b"FROM " + name))
    said = f"no such table: main.{name.decode(errors='replace')}"
    if table == "topics":
        with pytest.raises(DamagedPart, match=said), ExitStack() as stack:
            open_part(path, stack)
    else:
        assert seconds_in(path) == ([], said)
