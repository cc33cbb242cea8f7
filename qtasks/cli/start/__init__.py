"""`qtasks new`: a project that runs, and its files."""
