from hypothesis import settings

# No deadline: a busy machine must not fail a test. Tests of slow inputs have their own time limit.
settings.register_profile("protocol", deadline=None)
settings.load_profile("protocol")
