"""``iotsplit broker check``: is a broker, or a bridge, fit for fleets?"""
