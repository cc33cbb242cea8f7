"""Commands for operators: messages, failures, dead letters, queues, limits, keys, the log, the store, and `doctor`."""
