"""
The ``redis`` backplane: the processes of several machines, with Redis or Valkey between them.

``backplane`` is that, ``connection`` one connection to Redis, and ``scripts`` what Redis runs, with the keys that hold
the log.
"""
