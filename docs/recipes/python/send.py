"""Sells a seat by events: python send.py binary|structured list-and-hold|buy SHOP TIME

TIME is when the shop decided it. Whoever is not sure whether an event arrived sends it again, with the same id and time.
"""

import os
import sys

from cloudevents.core.bindings.kafka import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer
from dateutil.parser import isoparse

mode, step, shop, time = sys.argv[1:]
to_record = {"binary": to_binary, "structured": to_structured}[mode]

producer = Producer(
    {
        "bootstrap.servers": os.environ["KAFKA"],
        "enable.idempotence": True,  # no event twice or out of order by a retry of the client's
        "partitioner": "murmur2_random",  # as Java's: else two programs send one seat's events to different partitions
    }
)
failures = []


def event(id, kind, subject, data):
    attributes = {
        "id": f"{shop}/{id}",  # with the source, names the event for ever
        "source": "https://shop.example/recipes/python",
        "type": f"holdfast.{kind}",
        "subject": subject,
        "time": isoparse(time),
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, data)


def send(topic, event):
    # The key is the subject, so that a seat's events keep their order.
    record = to_record(event, JSONFormat(), key_mapper=CloudEvent.get_subject)
    headers = list(record.headers.items())
    producer.produce(topic, record.value, record.key, headers=headers, on_delivery=delivered)


def delivered(error, record):
    if error:
        failures.append(f"{record.key()}: {error}")


def seat(number):
    return f"{shop}/A{number}"


def list_and_hold():
    for number in (1, 2):
        terms = {"show": shop, "seat": f"Row A, seat {number}", "price": {"amount": 4500, "currency": "EUR"}}
        send("reservations", event(f"list-{number}", "ticket.listed.v1", seat(number), terms))
    for user in ("ann", "bob"):  # bob comes second, and is refused
        send("reservations", event(f"hold-{user}", "reservation.requested.v1", seat(1), {"user": f"{shop}/{user}"}))
    send("payments", event("register-ann", "user.registered.v1", f"{shop}/ann", {"email": "ann@example.org"}))


def buy():
    order = {"checkout": f"{shop}/order-1", "tickets": [seat(1)], "payment_method": "pm_card_visa"}
    send("payments", event("order-1", "checkout.requested.v1", f"{shop}/ann", order))


{"list-and-hold": list_and_hold, "buy": buy}[step]()
unsent = producer.flush(30)
if failures or unsent:
    sys.exit(f"{unsent} events without an answer, refused: {failures}")
