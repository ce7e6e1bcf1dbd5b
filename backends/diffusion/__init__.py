"""Models that draw: diffusers' folders of Stable Diffusion, through PyTorch."""
