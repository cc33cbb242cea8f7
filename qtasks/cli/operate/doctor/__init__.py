"""`qtasks doctor`: checks of the machine, the application, the settings, the service and the store."""
