"""LoRA adapters: their files, and whether they fit a model."""
