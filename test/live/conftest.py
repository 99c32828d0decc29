# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("viser", reason="the extra `live` is not installed")
