"""The exchange simulator: seeded market, its own naive klines, REST, websocket, faults."""
