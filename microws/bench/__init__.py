"""
The load generator of ``microws bench``, which measures the user's own app, or any WebSocket server, from outside.

``bench/loadgen.c`` is the other one: it compares servers for ``make bench``, where a generator in Python would be the
limit. The two share nothing.
"""
