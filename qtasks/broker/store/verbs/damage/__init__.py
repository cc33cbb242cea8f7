"""What happens to messages of which the store no longer has what was accepted."""
