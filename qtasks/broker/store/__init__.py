"""The store: messages and everything around them, in SQLite. `interface` is what the rest of the broker sees."""
