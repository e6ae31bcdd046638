"""Loggers of runs: Weights & Biases, TensorBoard, MLflow and Trackio."""
