# SPDX-License-Identifier: Apache-2.0
"""Surroundings of all ROS tests, which skip where there is no ROS."""

import os
import random
import socket

import pytest


def own_domain():
    """A DDS domain that no other test session on this machine is in, and what it is held by: a socket at its port."""
    for domain in random.sample(range(1, 101), 100):
        held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            held.bind(("127.0.0.1", 61000 + domain))
            return domain, held
        except OSError:
            held.close()
    raise RuntimeError("a hundred test sessions run on this machine; wait for one of them")


DOMAIN, HELD = own_domain()
# For the processes started here too. Checked fields: rclpy publishes garbage for a value of the wrong type.
os.environ |= {
    "ROS_PYTHON_CHECK_FIELDS": "1",
    "ROS_DOMAIN_ID": str(DOMAIN),
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def start_client():
    """Makes clients, each of the node `stream` of its namespace."""
    from support.two_processes import Client

    clients = []

    def start(*args, **options):
        clients.append(Client(*args, **options))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def client(start_client):
    return start_client()


@pytest.fixture(scope="module")
def start_node(tmp_path_factory):
    """Starts node processes; ends those that a test left."""
    from support.two_processes import NodeProcess

    started = []

    def start(name="stream", remappings=None, **parameters):
        log = tmp_path_factory.mktemp(name) / "output.txt"
        started.append(NodeProcess(log, {"__node": name} | (remappings or {}), parameters))
        return started[-1]

    yield start
    for process in started:
        process.kill()
