"""A call on its way out: the message, the publisher, batches, middleware, tracing."""
