"""What engines over PyTorch share: what a loaded model takes, and how a want of memory is known."""
