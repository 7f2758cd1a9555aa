"""``iotsplit broker config`` and ``bridge``: access rules and settings for brokers that exist."""
