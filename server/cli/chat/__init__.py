"""What `onecard run` is made of. Nothing of it is imported before that command needs it."""
