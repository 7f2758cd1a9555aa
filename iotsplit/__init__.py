"""iotsplit: hierarchical split learning of LLMs over MQTT."""

__version__ = "0.1.0"
