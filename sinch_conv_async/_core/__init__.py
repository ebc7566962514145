"""One call, from the await to the socket: admission, token, exchange, retry. ``manager`` says who shares what."""
