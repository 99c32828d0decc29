# SPDX-License-Identifier: Apache-2.0
"""How sure a pose is said to be."""

import numpy as np
from support.frames import frame
from support.messages import place

from xsvggt_ros.geometry import rigid
from xsvggt_ros.placement.covariance import pose_covariance
from xsvggt_ros.status import ScaleStatus


def test_covariance_says_what_is_not_known():
    """Positions: nothing without a scale, and the less the more its measurements differ and the way is long."""
    away = np.array([3.0, 0.0, 4.0])
    far = frame(3, T_first_cam=rigid(np.eye(3), away))
    none, fixed, vague = (
        np.diag(pose_covariance(place(far, scale=scale)).reshape(6, 6))
        for scale in (ScaleStatus(), ScaleStatus("fixed", 2.0, 0.0), ScaleStatus("tf", 2.0, 0.2))
    )
    assert (none[:3] == 1e6).all()
    np.testing.assert_allclose(fixed[:3], (0.01 + 0.05 * 5) ** 2)
    np.testing.assert_allclose(vague[:3], (0.01 + 0.2 * 5) ** 2)
    assert (none[3:] == fixed[3:]).all() and (none[3:] > 0).all()
