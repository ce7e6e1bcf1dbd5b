"""`onecard doctor`: what is right and wrong with this machine, its configuration and its server, and what to do."""
