"""Where results are kept: one backend a URL scheme, all with the verbs of `base.ResultBackend`."""
