"""The pure centre of the broker: values, the table of legal moves, and the messages it makes. No I/O, no clock."""
