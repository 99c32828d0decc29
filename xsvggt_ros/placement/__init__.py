# SPDX-License-Identifier: Apache-2.0
"""Where a frame is: TF, the camera's mounting, metres."""
