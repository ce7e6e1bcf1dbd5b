"""`python -m bench cluster`: the router of a cluster over modelled nodes, beside rules that look at less."""
