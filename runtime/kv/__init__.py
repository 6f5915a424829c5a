"""The KV cache: its precision at each length, and the cache that follows this schedule."""
