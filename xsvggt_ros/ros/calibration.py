# SPDX-License-Identifier: Apache-2.0
"""Why images have no calibration, in words: which camera_info is read, and what others there are."""

from __future__ import annotations

from rclpy.node import Node

from xsvggt_ros.messages.topics import CAMERA_INFO_TYPE
from xsvggt_ros.ros.silence import topics_of

PATIENCE = 5  # looks, a second apart: a camera_info may come a little later than the first images


class CalibrationWatch:
    """Says, once for each reason, that images go on without a calibration, and where one may be."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reason = ""
        self._looks = 0  # in a row that found this reason

    def look(self, reason: str, topic: str) -> str:
        """Takes in, once a second, why the newest image has no calibration; empty: it has one.

        topic: the camera_info that is read. Returns where else there may be one, once the reason lasts.
        """
        self._looks = self._looks + 1 if reason == self._reason else 0
        self._reason = reason
        if not reason or self._looks < PATIENCE:
            return ""
        where = where_calibrations_are(self._node, topic)
        if self._looks == PATIENCE:
            self._node.get_logger().warning(f"{reason}; {where}")
        return where


def where_calibrations_are(node: Node, topic: str) -> str:
    """What a user needs to know who has given `topic` as camera_info, or has not."""
    others = ", ".join(topics_of(node, [CAMERA_INFO_TYPE], topic))
    return f"camera_info (after remapping: {topic}) has publishers: {node.count_publishers(topic)}; " + (
        f"other CameraInfo topics there are: {others}; "
        "choose one with camera_info_topic:=TOPIC (launch) or `--ros-args -r camera_info:=TOPIC`"
        if others
        else "there are no other CameraInfo topics"
    )
