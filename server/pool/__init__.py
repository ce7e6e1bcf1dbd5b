"""The asyncio shell around the scheduler: workers, live jobs, their streams, and what is told of them."""
