"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# A busy machine must not fail a property: only the claim counts, not the time of one example.
settings.register_profile(
    "outlay",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("outlay")
