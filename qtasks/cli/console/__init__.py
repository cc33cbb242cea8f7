"""`qtasks console`."""
