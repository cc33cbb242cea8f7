"""The pure part of the broker: values, the state machine of messages, the builder of messages. No I/O, no clock."""
