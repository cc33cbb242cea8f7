"""Labels that the framework gives to the messages of its calls."""
