# SPDX-License-Identifier: Apache-2.0
"""Between ROS messages and arrays, for DDS and for recordings alike; needs no rclpy."""
