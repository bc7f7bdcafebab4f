#!/usr/bin/env bash
# The ticket tour: buying seats by plain HTTP, told in words in tour.md. It runs against `make dev`, as often as you like, checks
# every step that it tells, and stops at the first that is not so.
#
# Addresses come from .dev/stack.json, or from RESTATE_INGRESS, RESTATE_ADMIN, PROVIDER and PROVIDER_KEY. Holds that end soon are
# asked for, unless the worker is set to such (`HOLDFAST_HOLD_FOR=5s make dev`; HOLD_FOR says so). Needs curl and Node.

set -euo pipefail

STACK="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.dev/stack.json"
# How long anything may take that is meant to happen, in seconds.
PATIENCE=120

main() {
  RESTATE_INGRESS=${RESTATE_INGRESS:-$(address restate_ingress)}
  RESTATE_ADMIN=${RESTATE_ADMIN:-$(address restate_admin)}
  PROVIDER=${PROVIDER:-$(address provider)}
  PROVIDER_KEY=${PROVIDER_KEY:-$(address provider_key)}
  HOLD_FOR=${HOLD_FOR:-$(address hold_for)}
  # Users, tickets and checkouts that no tour before this one had.
  local tour
  tour="tour-$(date +%s)-$$"
  ANN="$tour-ann" BOB="$tour-bob" A1="$tour-A1" A2="$tour-A2" B1="$tour-B1" B2="$tour-B2"
  ORDER="$tour-order" REGRETTED="$tour-regretted" LOST="$tour-lost"

  the_doors_open
  a_ticket_in_the_cart_is_held
  a_hold_that_runs_out_frees_the_ticket
  a_checkout_sells_the_tickets_and_takes_the_money_once
  a_cancelled_checkout_gives_everything_back
  so_does_one_that_is_killed
  say "The tour is over: every step did what it says."
}

the_doors_open() {
  say "Two users, and four tickets at 45 euros"
  expect "" reason "$(call "User/$ANN/register" '{"email":"ann@example.com","language":"en"}')"
  expect "" reason "$(call "User/$BOB/register" '{"email":"bob@example.com"}')"
  local ticket
  for ticket in "$A1" "$A2" "$B1" "$B2"; do
    expect "" reason "$(call "Ticket/$ticket/list" '{"show":"gala","price":{"amount":4500,"currency":"EUR"}}')"
  done
}

a_ticket_in_the_cart_is_held() {
  local asked added
  if [[ $HOLD_FOR == null ]]; then
    say "Ann puts a ticket into her cart: it is held for her, for 5 seconds, as the request says"
    asked="{\"ticket\":\"$A1\",\"hold_for\":5}"
  else
    say "Ann puts a ticket into her cart: it is held for her, for $HOLD_FOR, as the worker is set (HOLDFAST_HOLD_FOR)"
    asked="{\"ticket\":\"$A1\"}"
  fi
  added=$(call "User/$ANN/addTicket" "$asked")
  expect "$A1" .added.ticket "$added"
  show "$added"

  say "Bob wants it too, and is refused"
  local refused
  refused=$(call "User/$BOB/addTicket" "{\"ticket\":\"$A1\"}")
  expect held .refused.reason "$refused"
  show "$refused"

  say "Ann's cart, as the engine keeps it: ids of tickets and holds, nothing else"
  eventually "$A1" '[0].ticket' state_of_the_cart "$ANN"
  show "$(state_of_the_cart "$ANN")"
}

a_hold_that_runs_out_frees_the_ticket() {
  say "She lets the time run out: the ticket leaves the cart, and is free"
  eventually "[]" "" state_of_the_cart "$ANN"
  eventually available .status get "Ticket/$A1/get"
  show "$(get "Ticket/$A1/get")"

  say "Ann adds it again, and another one, each for 15 minutes; the cart has prices from the holds"
  add "$ANN" "$A1"
  add "$ANN" "$A2"
  local cart
  cart=$(get "User/$ANN/cart")
  expect 2 .tickets.length "$cart"
  expect 4500 '.tickets[1].price.amount' "$cart"
  show "$cart"
}

a_checkout_sells_the_tickets_and_takes_the_money_once() {
  say "She checks out, twice, with one idempotency key: one checkout, and the same answer"
  local asked first again
  asked="{\"checkout\":\"$ORDER\",\"payment_method\":\"pm_card_visa\"}"
  first=$(call "User/$ANN/checkout" "$asked" -H "idempotency-key: $ORDER")
  again=$(call "User/$ANN/checkout" "$asked" -H "idempotency-key: $ORDER")
  expect "" reason "$first"
  expect "$first" "" "$again"
  show "$first"

  say "The answer says that the checkout is open; it goes on by itself, and the cart is empty"
  expect "[]" .tickets "$(get "User/$ANN/cart")"
  eventually completed .state get "Checkout/$ORDER/get"
  local checkout
  checkout=$(get "Checkout/$ORDER/get")
  expect 9000 .total.amount "$checkout"
  show "$checkout"

  say "Both seats are hers"
  expect sold .status "$(get "Ticket/$A1/get")"
  expect "$ORDER" .checkout "$(get "Ticket/$A2/get")"
  show "$(get "Ticket/$A2/get")"

  say "The provider took the money, once"
  expect "succeeded 9000" paid "$(payment_of "$ORDER")"
  show "$(payment_of "$ORDER")"
}

a_cancelled_checkout_gives_everything_back() {
  say "Bob checks out with a card from which the money can be set aside, but not be taken: the checkout stays under way"
  stay_under_way "$BOB" "$B1" "$REGRETTED"
  show "$(get "Checkout/$REGRETTED/get")"

  say "It is cancelled in the engine: the checkout first gives back what it has, then ends"
  manage "$REGRETTED" cancel
  eventually failed .state get "Checkout/$REGRETTED/get"
  expect cancelled .reason "$(get "Checkout/$REGRETTED/get")"
  all_is_given_back "$REGRETTED" "$B1"
}

so_does_one_that_is_killed() {
  say "Another one is killed: nothing of it runs any more, so it can give nothing back"
  stay_under_way "$BOB" "$B2" "$LOST"
  manage "$LOST" kill

  say "After a while (HOLDFAST_ABANDONED_AFTER) somebody looks after it all the same"
  eventually failed .state get "Checkout/$LOST/get"
  expect abandoned .reason "$(get "Checkout/$LOST/get")"
  all_is_given_back "$LOST" "$B2"
}

# USER TICKET CHECKOUT: the user buys the ticket, as far as that goes with such a card.
stay_under_way() {
  local user=$1 ticket=$2 checkout=$3
  add "$user" "$ticket"
  local asked="{\"checkout\":\"$checkout\",\"payment_method\":\"pm_card_captureUnavailable\"}"
  expect "" reason "$(call "User/$user/checkout" "$asked")"
  eventually sold .state get "Checkout/$checkout/get"
  expect sold .status "$(get "Ticket/$ticket/get")"
  expect "requires_capture 0" paid "$(payment_of "$checkout")"
}

# USER TICKET: puts the ticket into the cart, long enough to buy it.
add() {
  expect "$2" .added.ticket "$(call "User/$1/addTicket" "{\"ticket\":\"$2\",\"hold_for\":900}")"
}

# CHECKOUT TICKET
all_is_given_back() {
  expect available .status "$(get "Ticket/$2/get")"
  show "$(get "Ticket/$2/get")"
  expect "canceled 0" paid "$(payment_of "$1")"
  show "$(payment_of "$1")"
}

# HANDLER BODY [OPTION...]: calls a handler through the engine's ingress.
call() {
  curl -sSf "$RESTATE_INGRESS/$1" -H 'content-type: application/json' -d "$2" "${@:3}"
}

get() {
  curl -sSf "$RESTATE_INGRESS/$1"
}

# What the engine has in the state of a user's cart; [] when there is none.
state_of_the_cart() {
  local rows
  rows=$(query "select value_utf8 from state where service_name = 'User' and service_key = '$1' and key = 'cart'")
  field cart "$rows"
}

query() {
  curl -sSf "$RESTATE_ADMIN/query" -H 'content-type: application/json' -H 'accept: application/json' -d "{\"query\":\"$1\"}"
}

# CHECKOUT cancel|kill: what an operator of the engine can do to the invocation that takes the checkout to its end.
manage() {
  local rows id
  rows=$(query "select id from sys_invocation where target = 'Checkout/$1/run' and status <> 'completed'")
  id=$(field '.rows[0].id' "$rows")
  curl -sSf -X PATCH "$RESTATE_ADMIN/invocations/$id/$2"
  echo "  PATCH /invocations/$id/$2"
}

# The provider's payment of a checkout.
payment_of() {
  local payment
  payment=$(field .payment "$(get "Checkout/$1/get")")
  curl -sSf "$PROVIDER/v1/payment_intents/$payment" -H "authorization: Bearer $PROVIDER_KEY" |
    node -e 'const { id, status, amount, amount_received } = JSON.parse(require("fs").readFileSync(0));
      console.log(JSON.stringify({ id, status, amount, amount_received }))'
}

# PATH JSON: a part of it, text as it is and anything else as JSON; "undefined" if there is none. What takes more than a path has
# a name: why a reply refuses, what was paid, and the cart in the engine's rows.
field() {
  node -e '
    const [path, json] = process.argv.slice(1);
    const it = JSON.parse(json);
    const last = it.outcomes?.at(-1);
    const named = {
      reason: () => (last?.type.includes(".refused.") ? last.data.reason : ""),
      cart: () => (it.rows.length > 0 ? JSON.parse(it.rows[0].value_utf8) : []),
      paid: () => `${it.status} ${it.amount_received}`,
    };
    const safe = path.replace(/\./g, "?.").replace(/\[/g, "?.[");
    const part = named[path]?.() ?? eval(`it${safe}`);
    console.log(typeof part === "string" ? part : String(JSON.stringify(part)));
  ' "$1" "$2"
}

# WANTED PATH JSON
expect() {
  local found
  found=$(field "$2" "$3")
  [[ $found == "$1" ]] && return
  echo "tour: expected ${2:-it} to be \"$1\", but it is \"$found\" in $3" >&2
  exit 1
}

# WANTED PATH COMMAND...: waits until a part of what the command tells is as wanted.
eventually() {
  local told found end=$((SECONDS + PATIENCE))
  while true; do
    told=$("${@:3}")
    found=$(field "$2" "$told")
    [[ $found == "$1" ]] && return
    if ((SECONDS > end)); then
      echo "tour: ${2:-it} of \"${*:3}\" is not \"$1\" within $PATIENCE s, but \"$found\" in $told" >&2
      exit 1
    fi
    sleep 0.2
  done
}

address() {
  if [[ ! -f $STACK ]]; then
    echo "tour: no $STACK: start \`make dev\` first" >&2
    exit 1
  fi
  field ".$1" "$(cat "$STACK")"
}

say() {
  printf '\n%s\n' "$1"
}

show() {
  printf '  %s\n' "$1"
}

main
