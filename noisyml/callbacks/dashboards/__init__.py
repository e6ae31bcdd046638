"""Dashboards: what a run shows in Weights & Biases, TensorBoard, MLflow and Trackio."""
