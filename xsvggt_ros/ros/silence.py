# SPDX-License-Identifier: Apache-2.0
"""Why no image comes, in words: who publishes on the topic, whether that fits, and what other images there are."""

from __future__ import annotations

from collections.abc import Container

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from xsvggt_ros.messages.topics import IMAGE_TYPES


def why_silent(node: Node, images: Subscription, kind: str, lost: int) -> str:
    """What a user needs to know where no image comes on a subscription to messages of type `kind`: "on TOPIC ...".

    lost: images of which the middleware says that they were lost.
    """
    topic = images.topic_name
    publishers = node.get_publishers_info_by_topic(topic)
    about = "; ".join(_publisher(p, images, kind) for p in publishers) or "none"
    text = f"on {topic} ({kind}; `image` after remapping). Its publishers: {about}. "
    if lost:
        text += (
            f"The middleware lost {lost} images: publish them reliably, or give Fast DDS more shared memory on both "
            "sides with config/fastdds.xml. "
        )
    others = ", ".join(topics_of(node, IMAGE_TYPES, topic))
    return (
        text
        + f"Other image topics: {others or 'none'}"
        + ("; choose one with image_topic:=TOPIC (launch) or `--ros-args -r image:=TOPIC`" if others else "")
    )


def _publisher(publisher: TopicEndpointInfo, images: Subscription, kind: str) -> str:
    name = f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
    if publisher.topic_type != kind:
        transport = IMAGE_TYPES.get(publisher.topic_type)
        remedy = f"; set image_transport to {transport}" if transport else ""
        return f"{name} (sends {publisher.topic_type}, not {kind}{remedy})"
    qos = publisher.qos_profile
    verdict, reason = qos_check_compatible(qos, images.qos_profile)
    sends = f"{qos.reliability.name}, {qos.durability.name}".lower().replace("_", " ")
    if verdict == QoSCompatibility.ERROR:
        remedy = f"qos_overrides.{images.topic_name}.subscription.*"
        return f"{name} ({sends}: incompatible QoS, {reason.strip().rstrip(';')}; change {remedy})"
    return f"{name} ({sends}: compatible, but nothing comes)"


def topics_of(node: Node, types: Container[str], but: str) -> list[str]:
    """Those of some types that another node publishes, with their type, in order of name."""
    own = {publisher.topic_name for publisher in node.publishers}
    return sorted(
        f"{topic} ({kind})"
        for topic, kinds in node.get_topic_names_and_types()
        for kind in kinds
        if kind in types and topic not in own | {but} and node.count_publishers(topic)
    )
