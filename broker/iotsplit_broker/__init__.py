"""The broker tier: a configured Mosquitto (or the embedded broker) as a child process."""
