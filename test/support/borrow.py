# SPDX-License-Identifier: Apache-2.0
"""python borrow.py ENVIRONMENT: lends the modules of a virtual environment to the one that runs this, but none of ROS.

The wheels of two ROS distributions install modules of the same names: each needs an environment of its own. What is the
same for both (torch, the tools) lies in the first alone; a folder there has links to it, and to nothing of ROS or of
this package, so that no module of the one distribution can stand in for one that the other lacks.
"""

import re
import shutil
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

OF_ROS = re.compile(r"ros[-_](?!bags)|xsvggt_ros$")  # distributions, by their names


def lend(lender: Path, borrower: Path) -> None:
    """Links in `lender/../lent` to what the folder of modules `lender` has; `borrower` finds them behind its own."""
    of_ros = [wheel for wheel in distributions(path=[str(lender)]) if OF_ROS.match(wheel.name or "")]
    kept = {file.parts[0] for wheel in of_ros for file in wheel.files or ()}
    folder = lender.parent / "lent"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in lender.iterdir():
        if path.name not in kept and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    (borrower / "lent.pth").write_text(f"{folder}\n")


if __name__ == "__main__":
    places = {"base": str(Path(sys.argv[1]).resolve())}
    places["platbase"] = places["base"]
    lend(Path(sysconfig.get_path("purelib", vars=places)), Path(sysconfig.get_path("purelib")))
