"""Chat completions as tasks: the broker asks the model, and the answer comes back as a delivery."""
