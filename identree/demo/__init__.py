"""A loopback-only identity provider for ``make demo`` and for tests. It never runs in a real installation."""
