"""The embedded broker's process: ``python -m iotsplit_broker.embedded CONFIG``."""

import logging
import sys

from iotcore import IotCoreBroker


def main() -> None:
    """Serve until a signal ends the process; it knows no other end."""
    # It reports its tracing spans as errors, some for every packet.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=sys.argv[1]).run_forever()


if __name__ == "__main__":
    main()
