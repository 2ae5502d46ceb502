"""
The ``redis`` backplane: the processes of several machines, with Redis or Valkey between them.

``backplane`` is that, and asks Redis what has to be asked. ``publisher`` has what was published and not answered,
``topics`` delivers what arrives, and ``epoch`` knows whether Redis has lost something. ``connection`` is one connection
to Redis, over the bytes of ``line``, and ``scripts`` what Redis runs, with the keys that hold the log.
"""
