"""What `deploy/install.py` is made of. Standard library only, because it runs before anything is installed."""
