// tardis-dev's computed trade bars over trades that are in memory: one computable a symbol, called
// directly. Arguments: the file that bench.contenders.in_memory wrote.
'use strict'
const fs = require('fs')
const { computeTradeBars } = require('tardis-dev')

const source = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))
const messages = source.trades.map(([which, price, amount, at, side]) => {
  const timestamp = new Date(at)
  const symbol = source.symbols[which]
  return { type: 'trade', symbol, exchange: 'binance-futures', id: undefined, price, amount, side, timestamp, localTimestamp: timestamp }
})
const homes = source.trades.map(([which]) => which)
const make = computeTradeBars({ kind: 'time', interval: 60000 })
const computables = source.symbols.map(() => make())
const bars = new Map()
const started = process.hrtime.bigint()
const cpu = process.cpuUsage()
for (let index = 0; index < messages.length; index++) {
  for (const bar of computables[homes[index]].compute(messages[index])) {
    bars.set(`${bar.symbol} ${bar.openTimestamp.valueOf() - (bar.openTimestamp.valueOf() % 60000)}`, bar)
  }
}
const seconds = Number(process.hrtime.bigint() - started) / 1e9
const used = process.cpuUsage(cpu)
const last = source.trades[source.trades.length - 1][3]
let wrong = 0
for (const [symbol, open, ...values] of source.bars) {
  if (open + 60000 > last) continue // no later trade has closed it
  const bar = bars.get(`${symbol} ${open}`)
  const found = bar && [bar.open, bar.high, bar.low, bar.close, bar.volume]
  // a minute is closed by the symbol's next trade only, so a quiet symbol's last one is missing
  if (bar && found.some((value, at) => Math.abs(value - values[at]) > 1e-9 * Math.abs(values[at]))) wrong++
}
if (wrong) { console.error(`${wrong} bars differ`); process.exit(1) }
console.log(JSON.stringify({ per_s: messages.length / seconds, us: (used.user + used.system) / messages.length }))
