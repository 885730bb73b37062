"""matplotlib without pyplot: figures need no display and no backend, and a notebook's own backend stays as it is."""

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vitwarm.errors import UserError
from vitwarm.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load_matplotlib() -> ModuleType:
    """Import matplotlib on first use, whatever `MPLBACKEND` names.

    A process that a notebook starts inherits the notebook's backend, which matplotlib refuses to be imported with where
    it does not know it.

    Raises:
        UserError: matplotlib is missing.
    """
    loaded = "matplotlib" in sys.modules
    backend = None if loaded else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.figure  # noqa: F401  (a submodule: `matplotlib` is what is returned)
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'vitwarm[plot]'") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):  # a name that this matplotlib does not know
            matplotlib.rcParams["backend"] = backend
    return matplotlib


def new_figure(**options: Any) -> "Figure":
    """Make an empty figure, without pyplot.

    Args:
        options: arguments of `matplotlib.figure.Figure`.

    Raises:
        UserError: matplotlib is missing.
    """
    return load_matplotlib().figure.Figure(**options)


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a figure, whole or not at all; the suffix of the path says which format.

    Args:
        figure: the figure.
        path: the file; its folder must exist.
        options: arguments of `Figure.savefig`.

    Raises:
        OSError: full disk, no permission.
    """
    with whole_file(path) as aside:
        figure.savefig(aside, format=path.suffix.removeprefix(".") or "png", **options)
