"""The QStash protocol, for the client, the broker and the tasks. Pure: no I/O, no clock, no randomness."""
