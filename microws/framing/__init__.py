"""
RFC 6455 frames, without I/O: ``frames`` encodes those of a server, ``parser`` decodes those of a client.

Only a server needs the parser and the C extension that it unmasks with.
"""
