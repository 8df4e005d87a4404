"""Run a notebook and write it with its outputs.

    python scripts/refresh_notebook.py examples/custom_python_wrapper.ipynb

It runs in a temporary folder, but may import what lies beside it. Nothing of the machine is kept:
no paths, no version of the kernel, no times of cells.
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def environment(beside: Path) -> dict[str, str]:
    """Return what the kernel gets: this process's environment, and the notebook's folder."""
    path = [str(beside.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> None:
    """Run the notebook of the command line, in a temporary folder."""
    parser = argparse.ArgumentParser(description="Run a notebook and write it with its outputs.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, help="where to write it; default: in place")
    options = parser.parse_args()

    notebook = nbformat.read(options.notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment(options.notebook.parent))
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.write(notebook, options.output or options.notebook)


if __name__ == "__main__":
    main()
