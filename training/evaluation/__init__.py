"""How good an encoder is, measured the way the service will answer."""
