# SPDX-License-Identifier: Apache-2.0
"""Training of a small StreamVGGT from scratch on synthetic rooms."""
