"""One sequence's choices (sampler, stop detection) and the loop that computes many of them."""
