# SPDX-License-Identifier: Apache-2.0
"""A shortage is one error, and no other error is taken for it."""

import os
import subprocess
import sys
import weakref

import pytest
import torch

from xsvggt_ros.memory import OutOfMemory, memory_for, memory_in_reach, out_of_memory


def test_errors_that_mean_no_memory_are_known():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(10**14)
    for error in (
        cpu.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
    ):
        assert out_of_memory(error), error
    for error in (
        RuntimeError("The size of tensor a (3) must match"),
        RuntimeError("could not create a primitive"),  # oneDNN, which never works again in that thread
        ValueError("out of memory"),
    ):
        assert not out_of_memory(error), error


def failed_work(error: BaseException, held: list) -> None:
    array = torch.zeros(3)
    held.append(weakref.ref(array))
    try:
        raise error
    finally:
        array += 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory"), OutOfMemory("inner")])
def test_a_shortage_becomes_one_error_that_says_what_is_to_be_said(error):
    with pytest.raises(OutOfMemory, match="lower the budget") as raised, memory_for("no memory; lower the budget"):
        raise error
    assert raised.value.__suppress_context__


def test_what_is_said_is_found_out_when_the_failed_work_has_let_go_of_its_memory():
    held: list[weakref.ref] = []

    def say(error: BaseException) -> str:
        assert held[0]() is None
        return f"{error}: half is left"

    with pytest.raises(OutOfMemory, match="bad_alloc: half is left"), memory_for(say):
        try:
            failed_work(RuntimeError("std::bad_alloc"), held)
        except RuntimeError as error:
            raise OutOfMemory(str(error)) from None


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_other_errors_pass_as_they_are(kind):
    error = kind("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(kind) as raised, memory_for("no memory"):
        raise error
    assert raised.value is error


def test_it_is_known_without_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, sys.modules[memory_for.__module__].__file__], check=True)


def test_the_memory_of_a_cpu_is_what_others_and_control_groups_leave_of_it(tmp_path, monkeypatch):
    cpu, free = torch.device("cpu"), 10**9 * 1024
    for name in ("OWN_CGROUP", "CGROUPS", "MEMINFO"):
        monkeypatch.setattr(f"xsvggt_ros.memory.{name}", tmp_path / (name if name != "CGROUPS" else ""))
    assert memory_in_reach(cpu) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # there are no such files
    (tmp_path / "MEMINFO").write_text("MemTotal: 2000000000 kB\nMemAvailable: 1000000000 kB\n")
    assert memory_in_reach(cpu) == free and memory_in_reach(cpu, held=7) == free + 7
    own = tmp_path / "machine" / "container"
    own.mkdir(parents=True)
    (tmp_path / "OWN_CGROUP").write_text("1:cpu:/elsewhere\n0::/machine/container\n")
    for folder, limit, used, cached, left in (
        (own, "max", 0, 0, free),
        (own, str(2 * free), 0, 0, free),
        (own, "500000000", 300_000_000, 50_000_000, 250_000_000),
        (own.parent, "400000000", 300_000_000, 0, 100_000_000),  # that of a group around it holds too
        (own.parent, "900000000", 300_000_000, 0, 250_000_000),
    ):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
        assert memory_in_reach(cpu) == left


def test_memory_in_small_pieces_goes_back_to_the_system():
    program = """
import torch
from xsvggt_ros.memory import give_back
def used():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [torch.zeros(2**10) for _ in range(50_000)]  # 4 KiB each
kept, held = pieces[::1000], used()
del pieces
give_back()
assert held - used() > 150 * 2**20, (held, used())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
