"""The console: a page for people, the JSON endpoints behind it, and the sessions of those who look at it."""
