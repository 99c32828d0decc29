# SPDX-License-Identifier: Apache-2.0
"""The small models and arrays of the tests run fastest on one thread, and do not disturb each other there."""

import torch

torch.set_num_threads(1)
