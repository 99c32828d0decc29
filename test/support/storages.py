# SPDX-License-Identifier: Apache-2.0
"""What the tests of storage files have in common."""

from xsvggt_ros.messages.bag import TYPES
from xsvggt_ros.messages.storage.part import DamagedPart

TOPIC = "/cam/image_raw"
IMAGE = "sensor_msgs/msg/Image"


def seconds(part):
    """Stamps of the images that can be read, and what the part says of the others."""
    found = []
    try:
        for topic, data in part.rows({TOPIC: IMAGE}):
            assert topic == TOPIC
            found.append(TYPES.deserialize_cdr(data, IMAGE).header.stamp.sec)
    except DamagedPart as error:
        return found, str(error)
    return found, ""
