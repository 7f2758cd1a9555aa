"""The cloud tier: the last layers, the round clock and the adapter versions."""
