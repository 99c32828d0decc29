# SPDX-License-Identifier: Apache-2.0
"""Measures what a stream says against what is true."""
