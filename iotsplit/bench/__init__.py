"""``iotsplit bench``: schemes of training beside each other, on real processes, and what they cost."""
