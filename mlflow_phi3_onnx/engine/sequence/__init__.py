"""One sequence while it is generated."""
