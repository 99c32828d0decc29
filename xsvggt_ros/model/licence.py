# SPDX-License-Identifier: Apache-2.0
"""What is said about the licence of weights that are others' work."""

import logging
from functools import cache

logger = logging.getLogger(__name__)


@cache  # once in a process
def say_licence(weights: str, licence: str) -> None:
    """Logs that such weights have a licence of their own, and what is known of it."""
    logger.warning("%s: these weights have a licence of their own, not this package's (%s)", weights, licence)
