"""`onecard service` and `onecard logs`: the server as a unit of the user's systemd, and its log."""
