"""The loops of a running broker: deliver messages, fire schedules, remove old messages."""
