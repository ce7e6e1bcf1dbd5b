"""Fine-tuning jobs: kept on disk, run in a process of their own while no request needs their memory."""
