# SPDX-License-Identifier: Apache-2.0
"""Many recordings through `xsvggt replay`, on the processes of Ray."""
