"""Fine-tuning: training files checked, what a job takes, and the process that trains."""
