"""The HTTP server: OpenAI's and MLflow's routes over logged models."""
