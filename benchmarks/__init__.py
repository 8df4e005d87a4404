"""Speed and memory of the package, beside what it is compared with, in one run."""
