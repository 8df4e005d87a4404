"""Who runs when: scheduling, batching, memory and cancellation."""
