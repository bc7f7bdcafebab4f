// Sells a seat by events: node dist/send.js binary|structured list-and-hold|buy SHOP TIME
//
// TIME is when the shop decided it. Whoever is not sure whether an event arrived sends it again, with the same id and time.

import { CloudEvent, Kafka as Binding } from 'cloudevents'
import { Kafka, Partitioners } from 'kafkajs'

const [mode, step, shop, time] = process.argv.slice(2)

const producer = new Kafka({ clientId: 'shop', brokers: [process.env.KAFKA!] }).producer({
  // No event twice or out of order by a retry of the client's.
  idempotent: true,
  maxInFlightRequests: 1,
  // As Java's: else two programs send one seat's events to different partitions.
  createPartitioner: Partitioners.DefaultPartitioner,
})

function record(topic: string, id: string, kind: string, subject: string, data: object) {
  const event = new CloudEvent({
    id: `${shop}/${id}`, // with the source, names the event for ever
    source: 'https://shop.example/recipes/typescript',
    type: `holdfast.${kind}`,
    subject,
    time,
    datacontenttype: 'application/json',
    data,
  })
  const { headers, value } = mode === 'binary' ? Binding.binary(event) : Binding.structured(event)
  const message = {
    key: subject, // so that a seat's events keep their order
    // The SDK names attributes that there are not, too.
    headers: Object.fromEntries(Object.entries(headers as object).filter(([, value]) => value !== undefined)),
    value: typeof value === 'string' ? value : JSON.stringify(value),
  }
  return { topic, messages: [message] }
}

const seat = (number: number) => `${shop}/A${number}`

function listAndHold() {
  const listed = [1, 2].map(number => {
    const terms = { show: shop, seat: `Row A, seat ${number}`, price: { amount: 4500, currency: 'EUR' } }
    return record('reservations', `list-${number}`, 'ticket.listed.v1', seat(number), terms)
  })
  const held = ['ann', 'bob'].map(user => {
    // bob comes second, and is refused
    return record('reservations', `hold-${user}`, 'reservation.requested.v1', seat(1), { user: `${shop}/${user}` })
  })
  const ann = { email: 'ann@example.org' }
  return [...listed, ...held, record('payments', 'register-ann', 'user.registered.v1', `${shop}/ann`, ann)]
}

function buy() {
  const order = { checkout: `${shop}/order-1`, tickets: [seat(1)], payment_method: 'pm_card_visa' }
  return [record('payments', 'order-1', 'checkout.requested.v1', `${shop}/ann`, order)]
}

await producer.connect()
await producer.sendBatch({ topicMessages: step === 'buy' ? buy() : listAndHold() })
await producer.disconnect()
