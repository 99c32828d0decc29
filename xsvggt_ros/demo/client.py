# SPDX-License-Identifier: Apache-2.0
"""Images played to the node, and what came back, image by image."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.demo.recording import Answer, Played
from xsvggt_ros.frame import InputImage
from xsvggt_ros.geometry import rigid, rotation_matrix
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.encode import TRACK
from xsvggt_ros.ros.client import RESEND_S, Arrival, StreamClient, stream_client
from xsvggt_ros.status import ImageCounts, StepStatus

__all__ = ["play", "stream_client"]

COUNTS = [f.name for f in fields(ImageCounts)]


def play(
    client: StreamClient, images: list[InputImage], rate: float, changes: dict[str, Any], change_after: int
) -> Played:
    """Sends the images at `rate` per second, and sets the parameters once `change_after` of them are sent."""
    before = _counts(client.status)
    started = time.monotonic()
    stamps: list[int] = []
    for i, image in enumerate(images):
        client.spin_until(started + i / rate)
        if i == change_after:
            change = client.set_parameters(changes)
        stamps.append(client.send(image))
    sent_rate = (len(images) - 1) / (time.monotonic() - started)
    refusal = client.refusal(change)
    client.answered(stamps[-1])
    client.spin_until(time.monotonic() + RESEND_S)  # the status is not the last output to arrive
    return Played(
        sent_rate=sent_rate,
        counts=_difference(_counts(client.status), before),
        change_after=change_after,
        refusal=refusal,
        **_answers(client, stamps),
    )


def _counts(status: Any) -> ImageCounts:
    return ImageCounts(**{name: getattr(status, name) for name in COUNTS})


def _answers(client: StreamClient, stamps: list[int]) -> dict[str, Any]:
    """Fields of Played, for images with these stamps."""
    outputs = _outputs(client.arrivals)
    for stamp in client.warm_up:
        outputs.pop(stamp, None)
    answers, incomplete = [], []
    for i, stamp in enumerate(stamps):
        messages, arrived = outputs.pop(stamp, ({}, 0))
        missing = sorted(set(client.topics) - set(messages))
        if not missing:
            answers.append(_answer(i, (arrived - stamp) * 1e-9, messages))
        elif messages:
            incomplete.append(f"image {i}: no {', '.join(missing)}")
    strays = [f"stamp {stamp} on {', '.join(messages)}" for stamp, (messages, _) in outputs.items()]
    return {"answers": answers, "incomplete": incomplete, "strays": strays}


def _outputs(arrivals: list[Arrival]) -> dict[int, tuple[dict[str, Any], int]]:
    """{stamp: ({topic: message}, time of the last arrival)}."""
    outputs: dict[int, tuple[dict[str, Any], int]] = {}
    for arrival in arrivals:
        message = arrival.decoded()
        stamp = stamp_ns(message.transforms[0].header if arrival.topic == "/tf" else message.header)
        messages, _ = outputs.get(stamp, ({}, 0))
        outputs[stamp] = (messages | {arrival.topic: message}, arrival.time_ns)
    return outputs


def _difference(after: ImageCounts, before: ImageCounts) -> ImageCounts:
    return ImageCounts(**{name: getattr(after, name) - getattr(before, name) for name in COUNTS})


def _answer(image: int, latency: float, messages: dict[str, Any]) -> Answer:
    transform = messages["/tf"].transforms[0].transform
    pose = messages["~/odometry"].pose.pose
    cloud = messages["~/points"]
    return Answer(
        image=image,
        latency=latency,
        T_tf=_matrix(transform.translation, transform.rotation),
        T_odometry=_matrix(pose.position, pose.orientation),
        intrinsics=np.array(messages["~/depth/camera_info"].k).reshape(3, 3),
        depth=_floats(messages["~/depth/image"]),
        confidence=_floats(messages["~/confidence/image"]),
        points=np.frombuffer(cloud.data, "<f4").reshape(cloud.height, cloud.width, 4)[..., :3],
        status=_status(messages["~/status"]),
        tracks=_tracks(messages.get("~/tracks")),
    )


def _matrix(position: Any, rotation: Any) -> np.ndarray:
    R = rotation_matrix(np.array([rotation.x, rotation.y, rotation.z, rotation.w]))
    return rigid(R, np.array([position.x, position.y, position.z]))


def _floats(image: Any) -> np.ndarray:
    return np.frombuffer(image.data, "<f4").reshape(image.height, image.width)


def _tracks(cloud: Any) -> NDArray[np.void]:
    return np.frombuffer(cloud.data if cloud else b"", TRACK)


def _status(message: Any) -> StepStatus:
    same = {f.name: getattr(message, f.name) for f in fields(StepStatus) if f.name not in ("seconds", "segments")}
    names = (name for name in message.get_fields_and_field_types() if name.endswith("_seconds"))
    return StepStatus(**same, seconds={name.removesuffix("_seconds"): getattr(message, name) for name in names})
