// tardis-dev's live feed with its computed trade bars. Arguments: url, symbols (a file with a JSON
// list), trades wanted. The expected bars are checked by the caller, who gets them as JSON.
'use strict'
const fs = require('fs')
const url = process.argv[2]
process.env.WSS_URL_BINANCE_FUTURES = `${url}/stream`
const { streamNormalized, normalizeTrades, compute, computeTradeBars } = require('tardis-dev')

const symbols = JSON.parse(fs.readFileSync(process.argv[3], 'utf8'))
const wanted = Number(process.argv[4])

async function main() {
  const messages = streamNormalized({ exchange: 'binance-futures', symbols, timeoutIntervalMS: 60000, onError: (error) => { console.error(error.message); process.exit(1) } }, normalizeTrades)
  const withBars = compute(messages, computeTradeBars({ kind: 'time', interval: 60000 }))
  let received = 0
  let started, cpu
  const bars = []
  for await (const message of withBars) {
    if (message.type === 'trade_bar') bars.push([message.symbol, message.openTimestamp.valueOf(), message.open, message.high, message.low, message.close, message.volume])
    if (message.type !== 'trade') continue
    if (received === 0) { started = process.hrtime.bigint(); cpu = process.cpuUsage() }
    received++
    if (received === wanted) break
  }
  const seconds = Number(process.hrtime.bigint() - started) / 1e9
  const used = process.cpuUsage(cpu)
  console.log(JSON.stringify({ seconds, cpu_s: (used.user + used.system) / 1e6, bars, rss: process.memoryUsage().rss }))
  process.exit(0)
}
main()
