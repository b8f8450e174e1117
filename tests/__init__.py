"""The tests of synplug."""
