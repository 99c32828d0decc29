# SPDX-License-Identifier: Apache-2.0
import pytest

from xsvggt_ros import installation
from xsvggt_ros.installation import package_file

STATUS = ("msg/StreamStatus.msg", "share/xsvggt_ros/msg/StreamStatus.msg")
NODE = ("scripts/stream_node", "lib/xsvggt_ros/stream_node")


@pytest.mark.parametrize("names", [STATUS, NODE])
def test_a_file_is_found_in_the_source_tree(names):
    assert package_file(*names).as_posix().endswith(names[0])


@pytest.mark.parametrize("names", [STATUS, NODE])
def test_a_file_is_found_below_the_prefix(names, tmp_path, monkeypatch):
    module = tmp_path / "lib" / "python3" / "site-packages" / "xsvggt_ros" / "installation.py"
    monkeypatch.setattr(installation, "__file__", str(module))
    with pytest.raises(FileNotFoundError, match="install it again"):
        package_file(*names)
    file = tmp_path / names[1]
    file.parent.mkdir(parents=True)
    file.touch()
    assert package_file(*names) == file
