"""What `onecard bench` is made of: a load generator, the baseline beside it, the figures and their picture."""
