"""The aggregation server: one engine, told the time; and the edges around it."""
