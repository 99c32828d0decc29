# SPDX-License-Identifier: Apache-2.0
"""How torch's threads wait for each other."""

import os

POLICY = "OMP_WAIT_POLICY"  # of OpenMP: a variable of the environment


def wait_without_spinning() -> None:
    """Call it before torch is imported. Threads that spin take the cores from all else there, and from each other.

    On cores that have other work a step took 15 times as long. What the user has set stays.
    """
    os.environ.setdefault(POLICY, "PASSIVE")
