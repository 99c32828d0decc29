# SPDX-License-Identifier: Apache-2.0
"""A page in the browser with what a stream sees, as it sees it; needs no ROS. docs/live.md is about its use."""
