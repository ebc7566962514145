"""What goes over the wire.

Arguments, requests, responses, JSON. Pure: no clock, event loop or socket.
"""
