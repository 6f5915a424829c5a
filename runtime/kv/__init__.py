"""The KV cache: which precision it has at which length, and the cache that follows that."""
