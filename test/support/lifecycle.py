# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node, driven from outside as `ros2 lifecycle` and a lifecycle manager do."""

import time

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState


class Lifecycle:
    """The two services that every lifecycle node has."""

    def __init__(self, client):
        self.client = client
        self._change = client.node.create_client(ChangeState, "stream/change_state")
        self._get = client.node.create_client(GetState, "stream/get_state")  # last: see wait()

    def state(self) -> int:
        return self.client.response(self._get.call_async(GetState.Request())).current_state.id

    def ask(self, name: str):
        """Future of the transition of that name; a node that is shut down may be gone before it answers."""
        transition = Transition(id=getattr(Transition, f"TRANSITION_{name}"))
        return self._change.call_async(ChangeState.Request(transition=transition))

    def change(self, name: str) -> bool:
        """Whether the transition of that name succeeded."""
        return self.client.response(self.ask(name)).success

    def wait(self) -> None:
        """Until client and node know all of each other.

        An answer is lost if the node does not know the client's reader of it yet, so the question is asked again.
        Endpoints are made known in the order of their creation: once the last is, so are the others.
        """
        node = self.client.node
        self.client.until(lambda: ("stream", node.get_namespace()) in node.get_node_names_and_namespaces())
        self.client.until(self.client.parameters.services_are_ready)
        self.client.until(lambda: self._get.service_is_ready() and self._change.service_is_ready())
        self.client.until(self._answered)

    def _answered(self) -> bool:
        """Whether the node answers within a second."""
        answer, end = self._get.call_async(GetState.Request()), time.monotonic() + 1
        self.client.until(lambda: answer.done() or time.monotonic() > end)
        return answer.done()
