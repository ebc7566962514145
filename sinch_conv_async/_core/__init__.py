"""One call, from the await to the socket.

``send`` has its steps in order; ``manager`` has what clients share.
"""
