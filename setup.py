# SPDX-License-Identifier: Apache-2.0
"""The part of `pip install` that pyproject.toml cannot say: the ROS messages are generated and compiled."""

import sys
import tempfile
from pathlib import Path
from shutil import rmtree

from setuptools import Command, Distribution, setup
from setuptools.command.build import build
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build backend runs this file without its folder on the path

try:
    from ament_index_python.packages import get_packages_with_prefixes

    from build_messages import build_messages, mixture
except ModuleNotFoundError as error:
    print(f"xsvggt_ros: ROS messages are not built, {error.name} is not installed; the core works without them")
    HAVE_ROSIDL = False
else:
    HAVE_ROSIDL = True

TF_MESSAGE = "geometry_msgs/TransformStamped[] transforms\n"


class BuildMessages(Command):
    """Builds `xsvggt_ros.msg`, and `tf2_msgs`, which the package index does not have."""

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        if reason := mixture():
            raise SetupError(reason)
        with tempfile.TemporaryDirectory() as work:
            self.build("xsvggt_ros", ROOT, ["std_msgs", "builtin_interfaces"], Path(work, "xsvggt_ros"))
            # Asked of the ament index, not of Python: an older build of this very package must not count.
            if "tf2_msgs" not in get_packages_with_prefixes():
                source = Path(work, "source")
                (source / "msg").mkdir(parents=True)
                (source / "msg" / "TFMessage.msg").write_text(TF_MESSAGE)
                dependencies = ["geometry_msgs", "std_msgs", "builtin_interfaces"]
                self.build("tf2_msgs", source, dependencies, Path(work, "tf2_msgs"))

    def build(self, package: str, source: Path, dependencies: list[str], work: Path) -> None:
        destination = self.library() / package
        rmtree(destination / "msg", ignore_errors=True)
        build_messages(package, source, dependencies, work, destination)

    def library(self) -> Path:
        """Where the modules go. An editable install gets them beside it: never into the source tree."""
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        return Path(folder)

    def get_outputs(self) -> list[str]:
        files = ("msg/*.py", "*.so")
        packages = [self.library() / name for name in ("xsvggt_ros", "tf2_msgs")]
        return [str(path) for folder in packages for pattern in files for path in folder.glob(pattern)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("msg/*.msg"))]


class Build(build):
    if HAVE_ROSIDL:
        sub_commands = (*build.sub_commands, ("build_messages", None))

    def run(self) -> None:
        rmtree(self.build_lib, ignore_errors=True)  # modules of an earlier build, which may be named otherwise by now
        super().run()


class PackageDistribution(Distribution):
    # Under this name an editable install asks whether to install share/ and lib/.
    has_data = Distribution.has_data_files

    def has_ext_modules(self) -> bool:
        return HAVE_ROSIDL


setup(cmdclass={"build": Build, "build_messages": BuildMessages}, distclass=PackageDistribution)
