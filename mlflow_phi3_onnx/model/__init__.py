"""The native model."""
