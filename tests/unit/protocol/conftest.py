from hypothesis import settings

# A busy machine is no reason to fail: what is slow on purpose has its own bound.
settings.register_profile("protocol", deadline=None)
settings.load_profile("protocol")
