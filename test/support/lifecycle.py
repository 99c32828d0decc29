# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node, driven from outside as `ros2 lifecycle` and a lifecycle manager do."""

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState


class Lifecycle:
    """The two services that every lifecycle node has."""

    def __init__(self, client):
        self.client = client
        self._get = client.node.create_client(GetState, "stream/get_state")
        self._change = client.node.create_client(ChangeState, "stream/change_state")

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
        """For the node."""
        self.client.until(lambda: self._get.service_is_ready() and self._change.service_is_ready())
