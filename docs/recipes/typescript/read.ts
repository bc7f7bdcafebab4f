// Rebuilds a table of seats from the outcomes, and keeps it: node dist/read.js TOPIC FILE
//
// FILE holds the table together with the offsets up to which it is made, so that neither is ever ahead of the other.

import { randomUUID } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs'
import kafkajs from 'kafkajs'
import { compressFrame, decompressFrame } from 'lz4-napi'

const { CompressionCodecs, CompressionTypes, Kafka } = kafkajs
// Outcomes are packed in LZ4, which this client does not know by itself.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: (encoder: { buffer: Buffer }) => compressFrame(encoder.buffer),
  decompress: (buffer: Buffer) => decompressFrame(buffer),
})

type Outcome = { id: string; type: string; subject: string; sequence: number; generation: number; data: any }

type Seat = {
  status?: string
  show?: string
  seat?: string | null
  price?: number
  currency?: string
  user?: string | null
  hold?: string | null
  until?: string | null
  checkout?: string | null
}

/** The seat as one of its outcomes left it. */
type Row = Seat & { id: string; sequence: number; generation: number }

/** Each seat's rows, one for each of its outcomes; the last one counts. */
type Table = { offsets: Record<string, string>; seats: Record<string, Row[]> }

const FREE = { user: null, hold: null, until: null, checkout: null }

/** What an outcome changes in the row of its seat. */
function change(type: string, data: any): Seat {
  switch (type.replace(/^holdfast\.outcome\./, '')) {
    case 'ticket.listed.v1':
      return { status: 'available', ...FREE, ...terms(data) }
    case 'ticket.changed.v1':
      return terms(data)
    case 'ticket.held.v1':
      return { ...FREE, status: 'held', user: data.user, hold: data.hold, until: data.until }
    case 'ticket.hold_lengthened.v1':
      return { until: data.until }
    case 'ticket.sold.v1':
      return { status: 'sold', user: data.user, checkout: data.checkout, until: null }
    case 'ticket.released.v1':
    case 'ticket.expired.v1':
    case 'ticket.returned.v1':
      return { status: 'available', ...FREE }
    case 'ticket.withdrawn.v1':
      return { status: 'withdrawn', ...FREE }
    case 'ticket.hold_priced.v1':
    case 'ticket.off_sale.v1':
    case 'reservation.refused.v1':
    case 'reservation.refused.v2':
      return {} // nothing that this table shows
    default:
      stop(`${type} is newer than this reader: the table would be wrong from here on`)
  }
}

function terms({ show, seat, price }: any): Seat {
  return { show, seat: seat ?? null, price: price.amount, currency: price.currency }
}

/** Adds the row that an outcome makes to those of its seat. */
function apply({ subject, sequence, generation, id, type, data }: Outcome, seats: Table['seats']) {
  if (sequence === 0) {
    return // a refusal about a ticket that does not exist
  }
  const rows = (seats[subject] ??= [])
  const newest = rows.at(-1)?.generation ?? generation
  if (generation < newest) {
    return // from before the database was put back: a repeat, or taken back
  }
  if (generation > newest) {
    rows.splice(sequence - 1) // the database was put back to before these
  }
  const where = `${subject}: sequence ${sequence} of generation ${generation}`
  if (sequence > rows.length + 1) {
    stop(`${where} follows ${rows.length}: outcomes are missing`)
  }
  const row: Row = { ...rows[sequence - 2], ...change(type, data), id, sequence, generation }
  const known = rows[sequence - 1]
  if (!known) {
    rows.push(row)
  } else if (!same(known, row)) {
    stop(`${where} came again with other content: ${id}, before ${known.id}`)
  }
}

function same(one: Row, other: Row) {
  const sorted = (row: Row) => JSON.stringify(Object.entries(row).sort())
  return sorted(one) === sorted(other)
}

/** The client would try an error again, for ever. */
function stop(why: string): never {
  console.error(why)
  process.exit(1)
}

/** After a crash there is the old file or the new one, never a half. */
function save(file: string, table: Table) {
  const next = openSync(`${file}.new`, 'w')
  writeSync(next, JSON.stringify(table))
  fsyncSync(next)
  closeSync(next)
  renameSync(`${file}.new`, file)
}

const [topic, file] = process.argv.slice(2)
const table: Table = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : { offsets: {}, seats: {} }
const consumer = new Kafka({ clientId: 'seats', brokers: [process.env.KAFKA!] }).consumer({
  groupId: `seats-${randomUUID()}`, // a group of its own: all partitions are this process's
  readUncommitted: false,
})
await consumer.connect()
await consumer.subscribe({ topic, fromBeginning: true })
consumer.on(consumer.events.GROUP_JOIN, () => {
  for (const [partition, offset] of Object.entries(table.offsets)) {
    consumer.seek({ topic, partition: Number(partition), offset })
  }
})
await consumer.run({
  autoCommit: false, // the offsets are ours
  eachBatch: async ({ batch }) => {
    for (const message of batch.messages) {
      apply(JSON.parse(message.value!.toString()), table.seats)
    }
    table.offsets[batch.partition] = String(BigInt(batch.lastOffset()) + 1n)
    save(file, table)
  },
})
