"""The brokers of tests: in virtual time on one thread, or in real time behind sockets."""
