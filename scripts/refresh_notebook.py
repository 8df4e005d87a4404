"""Run a notebook and write it with its outputs.

    python scripts/refresh_notebook.py examples/custom_python_wrapper.ipynb

Nothing of the machine is kept: no times, no paths, no version of the kernel.
"""

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


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
        client.execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.write(notebook, options.output or options.notebook)


if __name__ == "__main__":
    main()
