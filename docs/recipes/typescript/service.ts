// A Restate service of a stranger's own, to which the engine hands every outcome: node dist/service.js PORT
//
// The engine calls the handler of one seat for one outcome at a time, in the order of the topic, and keeps what it writes once the
// call has succeeded.

import * as restate from '@restatedev/restate-sdk'

type Outcome = { type: string; subject: string; sequence: number; generation: number }

/** What the service knows of a seat: its newest outcome, and how many it was told, once and again. */
type Seen = { generation: number; sequence: number; last: string; outcomes: number; repeats: number }

const NOTHING: Seen = { generation: 0, sequence: 0, last: '', outcomes: 0, repeats: 0 }

const seats = restate.object({
  name: 'Seats',
  handlers: {
    told: async (context: restate.ObjectContext, outcome: Outcome) => {
      const { subject, generation, sequence, type } = outcome
      if (sequence === 0) {
        return // a refusal about a ticket that does not exist
      }
      const seen = (await context.get<Seen>('seen')) ?? { ...NOTHING, generation }
      const isNewer = generation > seen.generation
      if (!isNewer && (generation < seen.generation || sequence <= seen.sequence)) {
        // A new subscription reads the topic again from its start.
        context.set('seen', { ...seen, repeats: seen.repeats + 1 })
        return
      }
      if (sequence > seen.sequence + 1) {
        // No TerminalError: the engine tries this seat's call again and again, and shows it, until somebody has looked.
        throw new Error(`${subject}: sequence ${sequence} follows ${seen.sequence}: outcomes are missing`)
      }
      // Of a newer generation the sequence may step back: the database was put back to before what was told then.
      context.set('seen', { ...seen, generation, sequence, last: type, outcomes: seen.outcomes + 1 })
    },

    seen: restate.handlers.object.shared(async (context: restate.ObjectSharedContext) => {
      return await context.get<Seen>('seen')
    }),
  },
})

restate.serve({ services: [seats], port: Number(process.argv[2]) })
