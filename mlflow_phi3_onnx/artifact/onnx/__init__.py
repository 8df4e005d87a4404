"""What a graph's file says of it."""
