"""The test suite: pure rooms first, then real processes, then real sockets, then the real engine."""
