"""What `onecard bench` is made of: a load generator, the yardstick beside it, the figures and their picture."""
