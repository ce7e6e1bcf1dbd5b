"""What stands in front of the routes: strict HTTP/1.1, request ids, hosts, keys, origins, bodies."""
