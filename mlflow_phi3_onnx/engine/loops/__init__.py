"""The generate loops, and what they are made of."""
