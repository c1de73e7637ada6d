"""The cost model: what a model takes on a chip that need not be there.

``workload`` reads what is exact off the graph (parameters, multiplications, cache), without a weight;
``chips`` turns it into ranges of time with the constants in ``constants.toml``; ``planning`` puts
both into the report that ``aicc plan`` prints.
"""
