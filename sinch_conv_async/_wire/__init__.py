"""What goes over the wire: arguments that may be sent, requests, responses, JSON. Pure: no clock, no event loop, no socket."""
