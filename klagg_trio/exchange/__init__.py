"""The edge to the exchange: what it sends, what it is asked, and how fast it may be asked."""
