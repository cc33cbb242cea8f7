"""`qtasks broker`: one module a group of commands."""
