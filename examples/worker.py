"""Answers the requests of a pool, and shows where a model of your own goes.

    pip install paho-mqtt==2.2.0
    python worker.py mqtt://127.0.0.1:1883 site

`site` is the id of a `[[pool]]` with `mqtt = true`. docs/events.md describes request and reply.
"""

import json
import sys
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def answer(request):
    """Your model goes here. The content of request["messages"][0] is the image and the question."""
    answers = request["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
    return json.dumps({"answer": answers[0]})


def on_message(client, _userdata, message):
    if not hasattr(message.properties, "ResponseTopic"):
        return  # not from a node
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = getattr(message.properties, "CorrelationData", b"")
    try:
        content = answer(json.loads(message.payload))
        reply = {"model": "first-answer", "choices": [{"message": {"content": content}}]}
    except (KeyError, TypeError, ValueError) as error:
        properties.UserProperty = [("status", "400")]
        reply = {"error": {"message": f"not a request with answers to choose from: {error!r}"}}
    topic = message.properties.ResponseTopic
    client.publish(topic, json.dumps(reply), qos=1, properties=properties)


def main():
    broker, pool = urlsplit(sys.argv[1]), sys.argv[2]
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *_: client.subscribe(f"$share/workers/egret/pool/{pool}/req", qos=1)
    client.on_subscribe = lambda *_: print("subscribed", flush=True)
    client.on_message = on_message
    limits = Properties(PacketTypes.CONNECT)
    limits.ReceiveMaximum = 1  # one request at a time; the broker gives others to other workers
    client.connect(broker.hostname, broker.port or 1883, properties=limits)
    client.loop_forever()


if __name__ == "__main__":
    main()
