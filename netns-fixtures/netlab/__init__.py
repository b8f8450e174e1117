"""A lab of network namespaces: topology, real services, load, and independent oracles.

Start with :func:`netlab.isolation.enter_private_namespaces`; everything else refuses to
work outside the private namespaces that it makes.
"""
