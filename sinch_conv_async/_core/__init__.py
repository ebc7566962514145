"""One call, from the await to the socket.

``send`` tells it in order; ``manager`` says who shares what.
"""
