# SPDX-License-Identifier: Apache-2.0
"""A camera in a process of its own: images of 112x84 at 100 Hz on `image`, stamped with the time, frame "lens"."""

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

rclpy.init()
node = Node("camera")
publisher = node.create_publisher(Image, "image", QoSProfile(depth=10))
msg = Image(height=84, width=112, encoding="bgr8", step=3 * 112)
msg.data.frombytes(bytes(3 * 84 * 112))
msg.header.frame_id = "lens"


def publish() -> None:
    msg.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(msg)


node.create_timer(0.01, publish)
rclpy.spin(node)
