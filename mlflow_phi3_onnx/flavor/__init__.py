"""MLflow's side: saving, logging and loading models."""
