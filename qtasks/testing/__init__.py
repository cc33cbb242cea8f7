"""Testing applications of tasks: nothing is imported before it is used."""
