"""Numbered SQL: step N brings a database from schema version N-1 to N."""
