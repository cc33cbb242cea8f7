"""Result backends: one for each URL scheme, all with the interface `backend.ResultBackend`."""
