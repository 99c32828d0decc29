# SPDX-License-Identifier: Apache-2.0
"""What the node asks of the network, and what it does with weights that hold code.

With discovery limited to this machine (ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST) its sockets are those of DDS, as the
kernel lists them (Linux): datagrams, no connections. Where such datagrams go strace tells, where it is installed.
test_security.py shows that the stream itself opens no socket at all.
"""

import ipaddress
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch

pytest.importorskip("rclpy")

PROTOCOLS = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "packet", "icmp", "icmp6")
UNCONNECTED = {"0.0.0.0", "::"}


def sockets(pid) -> set[tuple[str, str, str]]:
    """(protocol, local address, remote address) of every socket of a process in an address family of networks."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            links.append(os.readlink(link))
    own = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}
    found = set()
    for protocol in PROTOCOLS:
        path = Path(f"/proc/{pid}/net/{protocol}")
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        for fields in map(str.split, rows):
            if protocol == "packet":
                assert fields[-1] not in own
            elif fields[9] in own:
                found.add((protocol, address(fields[1]), address(fields[2])))
    return found


def address(field: str) -> str:
    """As people write it, of what /proc/net has: words of 32 bits in the machine's order, then the port."""
    words = field.partition(":")[0]
    packed = b"".join(int(words[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(words), 8))
    return str(ipaddress.ip_address(packed))


@pytest.mark.skipif(not Path("/proc/self/net/udp").exists(), reason="needs /proc/net")
def test_the_node_has_datagram_sockets_of_this_machine_only(start_node, client):
    node = start_node(device="cpu", image_width=56)
    seen = set()
    client.until(lambda: seen.update(sockets(node.pid)) or client.images.get_subscription_count())
    for _ in range(10):
        seen |= sockets(node.pid)
        client.exchange(client.image())
    seen |= sockets(node.pid)
    assert seen  # else this looked in the wrong place
    assert {protocol for protocol, _, _ in seen} <= {"udp", "udp6"}
    remote = {peer for _, _, peer in seen} - UNCONNECTED
    assert all(ipaddress.ip_address(peer).is_loopback for peer in remote), seen


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_all_that_the_node_sends_goes_to_this_machine(start_node, client, tmp_path):
    log = tmp_path / "strace.txt"
    node = start_node("sender", device="cpu", image_width=56)
    command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", log, "-p", str(node.pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracing:
        client.until(lambda: client.images.get_subscription_count() > 0)
        client.until(lambda: client.images.publish(client.image()) or "cache:" in node.output())
        node.send_signal(signal.SIGINT)
        assert node.exit_code() == 0
        tracing.wait()
    peers = re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', log.read_text())
    if not log.read_text():
        pytest.skip("may not trace")
    assert peers
    assert all(ipaddress.ip_address(v4 or v6).is_loopback for v4, v6 in peers), set(peers)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_weights_ends_the_node_with_the_reason_and_is_not_run(start_node, tmp_path):
    trace, weights = tmp_path / "trace", tmp_path / "weights.pt"
    torch.save({"model": {"x": torch.ones(1)}, "args": Payload(str(trace))}, weights)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:-100])
    nodes = {start_node("code", device="cpu", weights=weights): "may run code when loaded, so it was refused"}
    nodes[start_node("cut", device="cpu", weights=cut)] = "not a complete file"
    for node, reason in nodes.items():
        assert node.exit_code() == 1
        assert reason in node.output()
        assert "Traceback" not in node.output()
    assert not trace.exists()
