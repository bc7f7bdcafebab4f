"""Rebuilds a table of seats from the outcomes, and keeps it: python read.py TOPIC FILE

FILE holds the table together with the offsets up to which it is made, so that neither is ever ahead of the other.
"""

import json
import os
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

FREE = {"user": None, "hold": None, "until": None, "checkout": None}


def change(kind, data):
    """What an outcome changes in the row of its seat."""
    match kind.removeprefix("holdfast.outcome."):
        case "ticket.listed.v1":
            return {"status": "available"} | FREE | terms(data)
        case "ticket.changed.v1":
            return terms(data)
        case "ticket.held.v1":
            return {"status": "held"} | FREE | data
        case "ticket.hold_lengthened.v1":
            return {"until": data["until"]}
        case "ticket.sold.v1":
            return {"status": "sold", "until": None} | data
        case "ticket.released.v1" | "ticket.expired.v1" | "ticket.returned.v1":
            return {"status": "available"} | FREE
        case "ticket.withdrawn.v1":
            return {"status": "withdrawn"} | FREE
        case "ticket.hold_priced.v1" | "ticket.off_sale.v1" | "reservation.refused.v1" | "reservation.refused.v2":
            return {}  # nothing that this table shows
    sys.exit(f"{kind} is newer than this reader: the table would be wrong from here on")


def terms(data):
    price = data["price"]
    return {"show": data["show"], "seat": data.get("seat"), "price": price["amount"], "currency": price["currency"]}


def apply(outcome, seats):
    """Adds the row that an outcome makes to those of its seat, of which the last one counts."""
    seat, sequence, generation = outcome["subject"], outcome["sequence"], outcome["generation"]
    if sequence == 0:
        return  # a refusal about a ticket that does not exist
    rows = seats.setdefault(seat, [])
    newest = rows[-1]["generation"] if rows else generation
    if generation < newest:
        return  # from before the database was put back: a repeat, or taken back
    if generation > newest:
        del rows[sequence - 1 :]  # the database was put back to before these
    where = f"{seat}: sequence {sequence} of generation {generation}"
    if sequence > len(rows) + 1:
        sys.exit(f"{where} follows {len(rows)}: outcomes are missing")
    before = rows[sequence - 2] if sequence > 1 else {}
    row = before | change(outcome["type"], outcome["data"])
    row |= {"id": outcome["id"], "sequence": sequence, "generation": generation}
    if sequence == len(rows) + 1:
        rows.append(row)
    elif rows[sequence - 1] != row:
        sys.exit(f"{where} came again with other content: {row['id']}, before {rows[sequence - 1]['id']}")


def load(file):
    if not os.path.exists(file):
        return {"offsets": {}, "seats": {}}
    with open(file, encoding="utf-8") as text:
        return json.load(text)


def save(file, table):
    """After a crash there is the old file or the new one, never a half."""
    with open(f"{file}.new", "w", encoding="utf-8") as text:
        json.dump(table, text)
        text.flush()
        os.fsync(text.fileno())
    os.replace(f"{file}.new", file)


def main(topic, file):
    table = load(file)
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA"],
            "group.id": "seats",  # asked for by the client; the offsets are ours
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            # Offsets of ours that the topic no longer has are an error, and no reason to skip what was lost.
            "auto.offset.reset": "error",
        }
    )
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    offset = lambda partition: table["offsets"].get(str(partition), OFFSET_BEGINNING)
    consumer.assign([TopicPartition(topic, partition, offset(partition)) for partition in partitions])
    while True:
        records = consumer.consume(500, timeout=1)
        for record in records:
            if record.error():
                raise KafkaException(record.error())
            apply(json.loads(record.value()), table["seats"])
            table["offsets"][str(record.partition())] = record.offset() + 1
        if records:
            save(file, table)


if __name__ == "__main__":
    main(*sys.argv[1:])
