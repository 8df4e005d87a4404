"""What a model is worth: comparisons."""
