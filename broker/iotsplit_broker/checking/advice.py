"""Which setting of which broker to change; those of EMQX and HiveMQ are partly from memory and not tried."""

from collections.abc import Mapping

from iotsplit.mailbox import LEAST_CHUNK_BYTES

RETAINED = {
    "mosquitto": "retain_available true, and let the user write and read these topics",
    "emqx": "mqtt.retain_available = true, retainer.enable = true, retainer.max_payload_size = 1MB",
    "hivemq": "<mqtt><retained-messages><enabled>true</enabled></retained-messages></mqtt>",
}
MANY_RETAINED = {
    "emqx": "retainer.backend.max_retained_messages = 0 (no limit)",
    "the embedded broker": "it has no setting: take Mosquitto for a hundred agents and more",
}
WILL = {
    "mosquitto": "let the user write the topic of the will; no other setting turns wills off",
    "emqx": "allow the will's topic in the authorization rules",
    "hivemq": "allow the will's topic, retained, in the permissions of the client",
}
QOS = {
    "mosquitto": "max_qos 1 or 2 of the listener; a bridge: topic … both 1",
    "emqx": "mqtt.max_qos_allowed = 1",
    "hivemq": "<mqtt><quality-of-service><max-qos>1</max-qos></quality-of-service></mqtt>",
}
TAKEOVER = {
    "agents": "give each agent a name of its own; the broker does not keep two of one name apart",
}
QUEUE = {
    "mosquitto": "max_queued_messages 100000 and max_queued_bytes 268435456 (never 0)",
    "emqx": "mqtt.max_mqueue_len = 100000",
    "hivemq": "<mqtt><queued-messages><max-queue-size>100000</max-queue-size></queued-messages></mqtt>",
}
TRIP = {
    "mosquitto": "set_tcp_nodelay true",
    "emqx": "listeners.tcp.default.tcp_options.nodelay = true",
}
BRIDGE = {
    "mosquitto": "bridge_protocol_version mqttv50, and topic … 1 for each (without a number it is QoS 0); "
    "see iotsplit broker bridge",
    "emqx": "a bridge with retain = ${flags.retain} and QoS 1 in both directions",
}
PRIVACY = {"mosquitto": "let the bridge carry wan, adapter, round, assign, update and state, and no more"}
SPEED = {"agents": "--codec int4:int2 sends fewer bytes; or look at the network between here and the broker"}


def payload(needed_bytes: int, largest_bytes: int) -> Mapping[str, str]:
    """For messages of `needed_bytes` where only `largest_bytes` pass."""
    fixes = {
        "mosquitto": f"message_size_limit 0 or at least {needed_bytes}, max_packet_size above it or not set",
        "emqx": "mqtt.max_packet_size = 1MB",
        "hivemq": "<mqtt><packets><max-packet-size>1048576</max-packet-size></packets></mqtt>",
        "the embedded broker": f"max_payload_size = {needed_bytes} or more",
    }
    if largest_bytes >= LEAST_CHUNK_BYTES:
        fixes["agents"] = f"--chunk-bytes {largest_bytes}"
    return fixes
