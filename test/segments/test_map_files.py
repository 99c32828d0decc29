# SPDX-License-Identifier: Apache-2.0
"""Maps in folders, and folders that hold none."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from support.segments import HEIGHT, WIDTH, far_from, pose, seen, some_similarity

from xsvggt_ros.segments.map import Map
from xsvggt_ros.segments.map_files import ABOUT, NUMBERS, load, save

ENCODER = "0123abcd"


def some_map(count: int = 5, first: int = 0) -> Map:
    map_ = Map(8, HEIGHT, WIDTH)
    for i in range(first, first + count):
        map_.add(seen(pose(turn=(0, 50 * i, 0)), index=i), some_similarity(i), set())
    for i in range(count - 1):
        for _ in range(1 + i % 2):
            map_.relations.add(i, i + 1, some_similarity(20 + i))
    return map_


def same(a: Map, b: Map) -> bool:
    """Whether both have the same keyframes in the same order."""
    pairs = list(zip(sorted(a.keyframes), sorted(b.keyframes), strict=True))
    place = dict(pairs)
    return (
        all(far_from(a.S_map_key(i), b.S_map_key(j)) == 0 for i, j in pairs)
        and all(np.array_equal(x, y) for i, j in pairs for x, y in zip(a.image(i), b.image(j), strict=True))
        and all(
            np.array_equal(a.slots.descriptors([a.keyframes[i].slot]), b.slots.descriptors([b.keyframes[j].slot]))
            for i, j in pairs
        )
        and {(place[i], place[j]): n for (i, j), n in a.relations.counts.items()} == b.relations.counts
        and a.relations.counts.keys() == a.relations.measured.keys()
        and b.relations.counts.keys() == b.relations.measured.keys()
        and all(
            far_from(S, b.relations.between(place[i], place[j])) < 1e-12 for (i, j), S in a.relations.measured.items()
        )
    )


@pytest.fixture
def saved(tmp_path):
    save(some_map(), tmp_path, ENCODER)
    return tmp_path


def rewrite(folder, **arrays) -> None:
    save_file(load_file(folder / NUMBERS) | arrays, folder / NUMBERS)


def test_those_may_read_a_map_who_may_read_other_new_files(saved):
    (saved / "other").touch()
    assert {path.stat().st_mode for path in saved.iterdir()} == {(saved / "other").stat().st_mode}


def test_a_map_comes_back_as_it_was(saved):
    loaded = load(saved, ENCODER)
    assert same(some_map(), loaded)
    assert (loaded.capacity, loaded.size, loaded.next_key) == (5, (HEIGHT, WIDTH), 5)
    assert loaded.resized(6, set()).add(seen(pose()), some_similarity(0), set()) == 5


@pytest.mark.parametrize("count", [1, 2])
def test_a_small_map_comes_back_too(tmp_path, count):
    save(some_map(count), tmp_path / "deep" / "er", ENCODER)
    assert same(some_map(count), load(tmp_path / "deep" / "er", ENCODER))


def test_keyframes_that_are_gone_leave_no_gap(tmp_path):
    map_ = some_map()
    map_.remove(2)
    save(map_, tmp_path, ENCODER)
    loaded = load(tmp_path, ENCODER)
    assert same(map_, loaded) and sorted(loaded.keyframes) == [0, 1, 2, 3]


def test_an_older_map_is_replaced(saved):
    newer = some_map(3, first=2)
    save(newer, saved, ENCODER)
    assert same(newer, load(saved, ENCODER))
    assert sorted(path.name for path in saved.iterdir()) == sorted([NUMBERS, ABOUT])


def test_a_map_that_is_saved_is_not_changed_by_it(tmp_path):
    map_ = some_map()
    save(map_, tmp_path, ENCODER)
    assert same(map_, some_map())


def test_what_was_measured_often_counts_as_much_when_it_is_back(tmp_path):
    map_, once = some_map(), some_similarity(90)
    for _ in range(2):
        map_.relations.add(1, 2, some_similarity(21))
    save(map_, tmp_path, ENCODER)
    loaded = load(tmp_path, ENCODER)
    np.testing.assert_array_equal(loaded.relations.weights([(0, 1), (1, 2)]), np.sqrt([1, 4]))
    for each in (map_, loaded):
        each.relations.add(1, 2, once)
    assert far_from(loaded.relations.between(1, 2), map_.relations.between(1, 2)) < 1e-12


def test_a_map_of_before_counts_were_kept_has_relations_that_were_measured_once(saved):
    save_file({name: x for name, x in load_file(saved / NUMBERS).items() if name != "counts"}, saved / NUMBERS)
    loaded = load(saved, ENCODER)
    assert loaded.relations.counts == dict.fromkeys(some_map().relations.counts, 1)
    assert all(
        far_from(S, loaded.relations.between(*pair)) < 1e-12 for pair, S in some_map().relations.measured.items()
    )


def test_a_map_larger_than_the_capacity_loses_keyframes_but_not_the_oldest(saved):
    loaded = load(saved, ENCODER).resized(3, set())
    assert len(loaded.keyframes) == loaded.capacity == 3
    assert far_from(loaded.S_map_key(min(loaded.keyframes)), some_map().S_map_key(0)) == 0
    assert loaded.relations.component(min(loaded.keyframes)) == loaded.keyframes.keys()


def test_a_map_of_another_encoder_is_refused(saved):
    with pytest.raises(ValueError, match="other weights: set those, or make a new map"):
        load(saved, "another")


@pytest.mark.parametrize("format_", [2, None, "1"])
def test_a_map_of_another_format_is_refused(saved, format_):
    about = json.loads((saved / ABOUT).read_text())
    (saved / ABOUT).write_text(json.dumps(about | {"format": format_}))
    with pytest.raises(ValueError, match=f"is of format {format_!r}, and this version reads 1"):
        load(saved, ENCODER)


@pytest.mark.parametrize("name", [NUMBERS, ABOUT])
def test_a_file_that_is_not_there_is_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=rf"no map that can be read .*{name}.*give a folder that ~/save_map wrote"):
        load(saved, ENCODER)


@pytest.mark.parametrize("left", [0, 7, 100, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(saved, left):
    whole = (saved / NUMBERS).read_bytes()
    (saved / NUMBERS).write_bytes(whole[: left if isinstance(left, int) else int(left * len(whole))])
    with pytest.raises(ValueError, match="no map that can be read"):
        load(saved, ENCODER)


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\xfe\x00", b"null", b"[1]", b"[" * 100_000], ids=range(6))
def test_what_is_no_json_is_refused(saved, garbage):
    (saved / ABOUT).write_bytes(garbage)
    with pytest.raises(ValueError, match=r"no map that can be read|is of format None"):
        load(saved, ENCODER)


def spoiled(array, value, at=(0, 0)):
    array = array.copy()
    array[at] = value
    return array


DAMAGES = {
    "fewer poses than images": lambda x: {"poses": x["poses"][:-1]},
    "poses of other numbers": lambda x: {"poses": x["poses"][:, :12].copy()},
    "poses of another type": lambda x: {"poses": x["poses"].astype(np.float32)},
    "a pose that is no number": lambda x: {"poses": spoiled(x["poses"], np.nan)},
    "a pose without rotation": lambda x: {"poses": spoiled(x["poses"], 0.0, (0, slice(1, 10)))},
    "a pose that mirrors": lambda x: {"poses": spoiled(x["poses"], -x["poses"][0, 1:10], (0, slice(1, 10)))},
    "a negative scale": lambda x: {"poses": spoiled(x["poses"], -1.0)},
    "a relation of scale 0": lambda x: {"relations": spoiled(x["relations"], 0.0)},
    "a relation that is infinite": lambda x: {"relations": spoiled(x["relations"], np.inf, (1, 11))},
    "a relation without rotation": lambda x: {"relations": spoiled(x["relations"], 0.0, (0, slice(1, 10)))},
    "relations without pairs": lambda x: {"pairs": x["pairs"][:-1]},
    "a pair beyond the end": lambda x: {"pairs": spoiled(x["pairs"], 5, (0, 1))},
    "a pair before the start": lambda x: {"pairs": spoiled(x["pairs"], -1)},
    "a pair of one keyframe": lambda x: {"pairs": spoiled(x["pairs"], 1)},
    "relations that were never measured": lambda x: {"counts": spoiled(x["counts"], 0, 1)},
    "relations of more measurements than there can be": lambda x: {"counts": spoiled(x["counts"], 2**62, 1)},
    "fewer counts than relations": lambda x: {"counts": x["counts"][:-1]},
    "counts of another type": lambda x: {"counts": x["counts"].astype(np.float64)},
    "pairs that are one number": lambda x: {"pairs": np.array(3)},
    "descriptors that are infinite": lambda x: {"descriptors": spoiled(x["descriptors"], np.inf)},
    "descriptors of another size": lambda x: {"descriptors": x["descriptors"][..., :32].copy()},
    "intrinsics of no camera": lambda x: {"intrinsics": np.zeros_like(x["intrinsics"])},
    "images without colour": lambda x: {"images": x["images"][..., :1].copy()},
    "images of another type": lambda x: {"images": x["images"].astype(np.float32)},
    "no images": lambda x: {"images": x["images"][:0]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_numbers_that_cannot_be_a_maps_are_refused(saved, damage):
    rewrite(saved, **DAMAGES[damage](load_file(saved / NUMBERS)))
    with pytest.raises(ValueError, match="is damaged"):
        load(saved, ENCODER)


def test_numbers_of_a_type_that_numpy_does_not_have_are_refused(saved):
    arrays = {name: torch.from_numpy(x) for name, x in load_file(saved / NUMBERS).items()}
    save_tensors(arrays | {"poses": arrays["poses"].bfloat16()}, saved / NUMBERS)
    with pytest.raises(ValueError, match=r"no map that can be read|is damaged"):
        load(saved, ENCODER)


@pytest.mark.parametrize("name", [NUMBERS, ABOUT])
def test_a_map_that_cannot_be_written_is_an_error_of_the_system_and_leaves_the_older_one(saved, name):
    (saved / f"{name}.part").mkdir()
    with pytest.raises(OSError, match="directory"):
        save(some_map(3), saved, ENCODER)
    assert same(some_map(), load(saved, ENCODER))
