"""Many clients, one engine: an HTTP server with the interface of OpenAI's.

In come requests of any client; out go answers, whole or piece by piece, all computed in the steps
of one engine of many sequences. :mod:`.app` is the map of addresses, :mod:`.engine_thread` the one
thread that the engine belongs to, :mod:`.server` what binds an address and ends in order.
"""
