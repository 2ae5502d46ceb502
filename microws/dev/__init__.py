"""
``microws dev``: serves an app while it is written.

The supervisor has the framework imported and runs neither threads nor an event loop. It binds the sockets, forks a
process for the app, and forks the next one when a file changes. Connections wait in the backlog meanwhile. If the code
fails, that process answers 503 with the reason.
"""
