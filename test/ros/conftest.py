# SPDX-License-Identifier: Apache-2.0
"""Surroundings of all ROS tests, which skip where there is no ROS."""

import os
import random

import pytest

# For the processes started here too. Checked fields: rclpy publishes garbage for a value of the wrong type.
os.environ |= {
    "ROS_PYTHON_CHECK_FIELDS": "1",
    "ROS_DOMAIN_ID": str(random.randint(1, 100)),
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def start_client():
    """Makes clients, each of the node `stream` of its namespace."""
    from two_processes import Client

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
    from two_processes import NodeProcess

    started = []

    def start(name="stream", remappings=None, **parameters):
        log = tmp_path_factory.mktemp(name) / "output.txt"
        started.append(NodeProcess(log, {"__node": name} | (remappings or {}), parameters))
        return started[-1]

    yield start
    for process in started:
        process.kill()
