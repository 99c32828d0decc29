# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training run's progress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw_curves(folder: Path) -> None:
    """Writes curves.png from losses.csv and validation.csv, as far as they are there."""
    paths = [path for path in (folder / "losses.csv", folder / "validation.csv") if path.exists()]
    if not paths:
        return
    figure = Figure(figsize=(14, 4.5 * len(paths)), layout="constrained")
    for row, path in enumerate(paths):
        table = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))
        columns = [c for c in table.dtype.names or () if c not in ("step", "seconds")]
        for k, column in enumerate(columns):
            axes = figure.add_subplot(2 * len(paths), 5, row * 10 + k + 1)
            axes.plot(table["seconds"] / 60, table[column])
            axes.set_title(f"{path.stem}: {column.replace('_', ' ')}", fontsize=8)
            axes.set_xlabel("minutes", fontsize=7)
            axes.tick_params(labelsize=7)
            axes.set_ylim(bottom=min(0, table[column].min()))
    figure.savefig(folder / "curves.png", dpi=100)
