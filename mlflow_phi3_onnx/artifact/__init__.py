"""What is on disk: reading a model folder, checking it, and repairing known defects."""
