"""The QStash-compatible server. It imports the protocol, never the client or the framework."""
