"""The control plane: HTTP, queue, ledger, scheduler, metrics. Never imports an inference library."""
