"""
The ``local`` backplane: the workers of one machine, with one hub process between them and nothing to install.

``hub_process`` is that process; ``client`` is the backplane in each worker. ``wire`` is what they say to each other
over a Unix socket, and ``directory`` is where the socket and the log are.
"""
