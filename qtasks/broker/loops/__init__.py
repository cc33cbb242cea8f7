"""The loops of a running broker: deliver messages, fire schedules, prune what is old."""
