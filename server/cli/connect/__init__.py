"""`onecard connect`: what each client has to be told to use this server."""
