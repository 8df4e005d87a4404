"""An engine in a process of its own: what crosses to it and back, both ends, and its start."""
