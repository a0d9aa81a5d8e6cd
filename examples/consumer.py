"""Prints the events of every node of a broker, and finds holes in them.

    pip install paho-mqtt==2.2.0
    python consumer.py mqtt://127.0.0.1:1883

The session is kept by the broker, so events published while this program is away arrive when it is
back. What it has counted is in memory: a consumer that must prove completeness over its own
restarts stores `next` and `ahead` of each epoch together with the events. docs/events.md has every
topic and field. Ends with Ctrl-C or SIGTERM; the exit code is 1 when something is missing.
"""

import json
import signal
import sys
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

TOPICS = ["egret/+/cam/+/event", "egret/+/gap", "egret/+/status"]
WEEK = 7 * 24 * 3600


class Epoch:
    """Which sequence numbers of one epoch are accounted for: received, or declared as a gap."""

    def __init__(self, first=None):
        self.next = first  # the lowest number not accounted for; None until the first one is seen
        self.ahead = set()  # numbers above it that are accounted for

    def account(self, first, last):
        """Accounts for first..=last. False when all of them were before: a repeat."""
        if self.next is None:
            self.next = first
        fresh = set(range(max(first, self.next), last + 1)) - self.ahead
        self.ahead |= fresh
        while self.next in self.ahead:
            self.ahead.remove(self.next)
            self.next += 1
        return bool(fresh)

    def holes(self):
        """Ranges that are missing below the highest number accounted for."""
        ranges, expected = [], self.next
        for seq in sorted(self.ahead):
            if seq > expected:
                ranges.append(f"{expected}..{seq - 1}")
            expected = seq + 1
        return ranges


class Consumer:
    def __init__(self):
        self.epochs = {}  # by (node, epoch)
        self.events = 0

    def status(self, node, status, retained):
        print(f"status {node} {status['state']}")
        # Announced while we listen, an epoch is seen from its start. One that runs already is
        # counted from the first number that we see.
        self.epochs.setdefault((node, status["epoch"]), Epoch(None if retained else 1))

    def event(self, event):
        key = (event["node"], event["epoch"])
        if not self.account(key, event["seq"], event["seq"]):
            print(f"repeat {event['seq']}")
            return
        self.events += 1
        print(f"{event['type']} {event['node']}/{event['cam']}/{event['rule']} {event['state']}: "
              f"{event['answer']} ({event['by']['model']}, {', '.join(event['reasons'])})")

    def gap(self, node, gap):
        print(f"gap {gap['from_seq']}..{gap['to_seq']}: {gap['reason']}")
        self.account((node, gap["epoch"]), gap["from_seq"], gap["to_seq"])

    def account(self, key, first, last):
        epoch = self.epochs.setdefault(key, Epoch())
        before = epoch.holes()
        fresh = epoch.account(first, last)
        if epoch.holes() != before:
            print(f"missing of {'/'.join(key)}: {' '.join(epoch.holes()) or 'nothing'}")
        return fresh

    def on_message(self, _client, _userdata, message):
        # The library acknowledges when this returns: what was not handled is delivered again.
        _, node, *_, kind = message.topic.split("/")
        payload = json.loads(message.payload)
        if kind == "event":
            self.event(payload)
        elif kind == "gap":
            self.gap(node, payload)
        else:
            self.status(node, payload, message.retain)


def main():
    broker = urlsplit(sys.argv[1])
    consumer = Consumer()
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id="egret-consumer", protocol=mqtt.MQTTv5)
    client.on_connect = lambda *_: client.subscribe(
        [(topic, mqtt.SubscribeOptions(qos=1)) for topic in TOPICS])
    client.on_subscribe = lambda *_: print("subscribed")
    client.on_message = consumer.on_message
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = WEEK
    client.connect(broker.hostname, broker.port or 1883, clean_start=False, properties=session)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: client.disconnect())
    client.loop_forever()
    holes = {key: epoch.holes() for key, epoch in consumer.epochs.items() if epoch.holes()}
    print(f"{consumer.events} events, missing: {holes or 'nothing'}")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
