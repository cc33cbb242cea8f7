"""What an operator does with messages and dead letters, of any QStash service: `QTasks.messages` and `QTasks.dlq`."""
