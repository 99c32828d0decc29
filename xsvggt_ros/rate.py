# SPDX-License-Identifier: Apache-2.0
"""Images per second, where a user states them."""

LEAST_RATE, MOST_RATE = 0.001, 1_000_000.0  # from time lapse to high speed; stamps in whole ns increase all the time


def check_rate(rate: float) -> None:
    """Raises ValueError unless that many images per second are sensible."""
    if not LEAST_RATE <= rate <= MOST_RATE:  # nan neither
        raise ValueError(
            f"rate must be from {LEAST_RATE} to {MOST_RATE:.0f} images per second, got {rate}: give the camera's, "
            "or leave the rate out"
        )
