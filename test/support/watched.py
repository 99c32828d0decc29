# SPDX-License-Identifier: Apache-2.0
"""Runs `xsvggt` or the stream alone, and logs what it changes and whom it asks: python watched.py LOG ARGUMENTS.

Every line of LOG is an audit event of Python and its arguments. If a library opens a socket that Python does not know
of, a filter in the kernel (Linux) ends the process.
"""

import ctypes
import json
import os
import platform
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
    "os.utime",
)  # fmt: skip
ASKS = ("os.exec", "os.fork", "os.posix_spawn", "os.system", "pty.", "socket.", "subprocess.", "urllib.")
SOCKET = {"x86_64": 41, "aarch64": 198}  # number of the system call
UNFILTERED = "unfiltered"  # event, where the kernel takes no filter


def watch(log: int) -> None:
    """Logs, from now on and for good."""

    def see(event: str, args: tuple) -> None:
        if event.startswith((*CHANGES, *ASKS)) or (event == "open" and args[2] & WRITES):
            texts = [os.fsdecode(arg) if isinstance(arg, (bytes, os.PathLike)) else str(arg) for arg in args]
            os.write(log, (json.dumps([event, texts]) + "\n").encode())

    sys.addaudithook(see)


class Instruction(ctypes.Structure):
    """struct sock_filter, man 2 seccomp."""

    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def forbid_sockets() -> bool:
    """Kills this process at its first socket; whether the kernel will."""
    load, compare, answer = 0x20, 0x15, 0x06
    kill, allow = 0x80000000, 0x7FFF0000
    socket = SOCKET.get(platform.machine(), 0)
    steps = ((load, 0, 0, 0), (compare, 0, 1, socket), (answer, 0, 0, kill), (answer, 0, 0, allow))
    instructions = (Instruction * len(steps))(*steps)
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    program = ctypes.byref(Program(len(steps), instructions))
    return prctl(no_new_privileges, 1, None, 0, 0) == 0 and prctl(seccomp, filter_mode, program, 0, 0) == 0


def step_alone() -> int:
    """The stream without the command around it."""
    import numpy as np

    from xsvggt_ros import GeometryStream

    stream = GeometryStream()
    for _ in range(3):
        stream.step(np.zeros((84, 112, 3), np.uint8))
    return 0


def open_socket_unseen() -> int:
    """As a library in C would."""
    return ctypes.CDLL(None).socket(2, 1, 0)


if __name__ == "__main__":
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    if platform.machine() not in SOCKET or not forbid_sockets():
        os.write(log, (json.dumps([UNFILTERED, []]) + "\n").encode())
    watch(log)
    if sys.argv[2:] in (["step_alone"], ["open_socket_unseen"]):
        sys.exit(globals()[sys.argv[2]]())
    from xsvggt_ros.cli import main

    sys.exit(main(sys.argv[2:]))
