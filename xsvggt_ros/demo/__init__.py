# SPDX-License-Identifier: Apache-2.0
"""The main job shown and checked: images to the node, a report of what comes back."""
