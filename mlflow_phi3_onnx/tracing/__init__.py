"""MLflow traces of requests."""
