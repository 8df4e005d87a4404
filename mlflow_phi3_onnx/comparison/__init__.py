"""Two models, run side by side on the same token ids: what they answer, how sure, and how fast."""
